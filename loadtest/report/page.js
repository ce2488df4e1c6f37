(function () {
  "use strict";
  const data = JSON.parse(document.getElementById("data").textContent);
  const graphs = Array.from(document.querySelectorAll("figure[data-graph]"), function (figure) {
    return {
      plot: figure.querySelector(".plot"),
      cursor: figure.querySelector(".cursor"),
      outputs: figure.querySelectorAll("output"),
      unit: figure.dataset.unit,
      values: data.graphs[figure.dataset.graph] || []
    };
  });
  const times = data.times || [];
  function show(index) {
    for (const g of graphs) {
      g.cursor.hidden = index < 0;
      if (index >= 0) g.cursor.style.left = 100 * Math.min(times[index] / data.span, 1) + "%";
      g.outputs.forEach(function (output, line) {
        const v = index < 0 ? undefined : g.values[line] && g.values[line][index];
        output.textContent = index < 0 ? "" : v === null || v === undefined ? "–" : v.toLocaleString("en") + g.unit;
      });
    }
  }
  function nearest(event, plot) {
    const box = plot.getBoundingClientRect();
    const at = data.span * (event.clientX - box.left) / box.width;
    let best = -1;
    for (let i = 0; i < times.length; i++) {
      if (best < 0 || Math.abs(times[i] - at) < Math.abs(times[best] - at)) best = i;
    }
    return best;
  }
  for (const g of graphs) {
    g.plot.addEventListener("pointermove", function (event) { show(nearest(event, g.plot)); });
    g.plot.addEventListener("pointerdown", function (event) { show(nearest(event, g.plot)); });
    g.plot.addEventListener("pointerleave", function () { show(-1); });
  }
})();
