// Sessions of MQTT.js through every edge, over TCP, TLS, WS and WSS, in MQTT 3.1.1 and 5.
//
// stdin: {"ca": PATH, "edges": [{"id", "tcp", "tls", "ws", "wss"}, …]}, addresses as host:port.
// stdout: a line for each session that came home. stderr: what went wrong, and exit code 1.
import { readFileSync } from 'node:fs'
import { text } from 'node:stream/consumers'
import mqtt from 'mqtt'

const { ca, edges } = JSON.parse(await text(process.stdin))
const authority = readFileSync(ca)
const schemes = { tcp: 'mqtt', tls: 'mqtts', ws: 'ws', wss: 'wss' }
const transports = Object.keys(schemes)
const patience = 15_000

function url ({ edge, transport }) {
  const path = transport.startsWith('ws') ? '/mqtt' : ''
  return `${schemes[transport]}://${edge[transport]}${path}`
}

async function connect (door, protocolVersion, clientId, clean, { had = [], ...more } = {}) {
  const properties = protocolVersion === 5 && !clean ? { sessionExpiryInterval: 3600 } : undefined
  const client = mqtt.connect(url(door), {
    clientId, clean, protocolVersion, properties, ca: authority, reconnectPeriod: 0, connectTimeout: patience, resubscribe: false, ...more
  })
  client.inbox = []
  client.on('message', (topic, payload, packet) => {
    const line = `${topic} ${packet.qos} ${packet.retain} ${payload.length > 20 ? payload.length : payload}`
    // What an earlier connection has shown may come again, marked: it left before its acknowledgement was out.
    if (!packet.dup || !had.includes(line)) client.inbox.push(line)
  })
  const connack = await new Promise((resolve, reject) => {
    client.once('connect', resolve)
    client.once('error', reject)
    client.once('close', () => reject(new Error(`${clientId}: closed before CONNACK by ${url(door)}`)))
  })
  client.removeAllListeners('error')
  client.on('error', () => {})
  return { client, present: connack.sessionPresent }
}

async function until (what, ok, seen) {
  const end = Date.now() + patience
  while (!ok()) {
    if (Date.now() > end) throw new Error(`${what}: not within ${patience} ms; seen ${seen()}`)
    await new Promise((resolve) => setTimeout(resolve, 5))
  }
}

async function expect (client, ordered, want) {
  const shown = (list) => (ordered ? list : [...list].sort()).join('\n')
  await until('messages', () => shown(client.inbox) === shown(want), () => `${shown(client.inbox)}\nwanted ${shown(want)}`)
}

async function story (version, first, second, third) {
  const id = `js${version}-${first.edge.id}-${first.transport}`
  const topic = `js/${id}`
  const publisher = (await connect(second, version, `${id}-pub`, true)).client
  await publisher.publishAsync(`${topic}/kept`, 'kept', { qos: 1, retain: true })

  let { client, present } = await connect(first, version, id, false)
  if (present) throw new Error(`${id}: a new client has a session`)
  await client.subscribeAsync(`${topic}/#`, { qos: 2 })
  const live = [`${topic}/kept 1 true kept`]
  for (const qos of [0, 1, 2]) {
    await publisher.publishAsync(`${topic}/live`, `${qos}`, { qos })
    live.push(`${topic}/live ${qos} false ${qos}`)
  }
  await publisher.publishAsync(`${topic}/large`, Buffer.alloc(1 << 20, 'x'), { qos: 1 })
  live.push(`${topic}/large 1 false ${1 << 20}`)
  await expect(client, false, live)
  await client.endAsync()

  const queued = []
  for (let i = 0; i < 10; i++) {
    const qos = i < 5 ? 1 : 2 // MQTT.js shows a message of QoS 2 when its PUBREL comes, past those of QoS 1
    await publisher.publishAsync(`${topic}/queued`, `${i}`, { qos })
    queued.push(`${topic}/queued ${qos} false ${i}`)
  }
  ({ client, present } = await connect(third, version, id, false, { had: live }))
  if (!present) throw new Error(`${id}: came back by ${url(third)} and found no session`)
  await expect(client, true, queued)

  const will = { topic: `${topic}/will`, payload: 'gone', qos: 1, retain: false }
  const mortal = (await connect(first, version, `${id}-will`, true, { will })).client
  mortal.stream.destroy()
  await expect(client, true, [...queued, `${topic}/will 1 false gone`])

  await publisher.publishAsync(`${topic}/kept`, '', { qos: 1, retain: true })
  await Promise.all([publisher.endAsync(), client.endAsync()])
  mortal.end(true)
  console.log(`home ${id}`)
}

for (const version of [4, 5]) {
  for (const [i, edge] of edges.entries()) {
    for (const [j, transport] of transports.entries()) {
      const door = (n) => ({ edge: edges[(i + n) % edges.length], transport: transports[(j + n) % transports.length] })
      await story(version, { edge, transport }, door(1), door(2))
    }
  }
}
