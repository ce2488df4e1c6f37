package pace

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// ErrRetry is wrapped by every error of ParseRetry.
var ErrRetry = errors.New("pace: bad retry profile")

// Never is the delay of a client that does not come back by itself.
const Never time.Duration = -1

// A Retry says how long a client waits before it connects again.
type Retry interface {
	// Delay is the wait before the given attempt: 0 is the first after a connection was lost, 1 comes after that one failed, and so
	// on. It draws from r if the library draws, and is Never where the library gives up.
	Delay(attempt int, r *rand.Rand) time.Duration
}

// A Profile is how one library comes back, with its defaults.
type Profile struct {
	Name    string
	Library string // with the version that was read
	Source  string // the file and the names in it

	// Settles is how long a connection must have lasted for the next loss to count from attempt 0 again. If it was shorter, the
	// count goes on from where it was.
	Settles time.Duration

	delay func(attempt int, r *rand.Rand) time.Duration
}

// Delay implements Retry.
func (p Profile) Delay(attempt int, r *rand.Rand) time.Duration {
	if p.delay == nil {
		return Never
	}
	return p.delay(max(attempt, 0), r)
}

func (p Profile) String() string { return p.Name }

// After returns the number of the next attempt, for a connection that was made by the attempt of the given number and lasted so long.
func (p Profile) After(attempt int, lasted time.Duration) int {
	if lasted >= p.Settles {
		return 0
	}
	return attempt + 1
}

// profiles holds what the sources say, not what their manuals say.
var profiles = []Profile{
	{
		Name: "none", Library: "none: clients do not come back by themselves",
	},
	{
		// reconnect: the first attempt is made at once; each failure sleeps initSleep (1 s), doubled up to MaxReconnectInterval
		// (10 min). A connection that is lost again within 2 × 3 s of the loss before counts as the same trouble: the next
		// first attempt sleeps as well.
		Name: "paho", Library: "Eclipse Paho Go (MQTT 3.1.1) 1.5.1",
		Source:  "eclipse/paho.mqtt.golang: client.go reconnect, backoff.go getBackoffSleepTime, options.go NewClientOptions",
		Settles: 6 * time.Second,
		delay: func(attempt int, _ *rand.Rand) time.Duration {
			if attempt == 0 {
				return 0
			}
			return doubling(attempt-1, time.Second, 10*time.Minute)
		},
	},
	{
		// establishServerConnection: NewConstantBackoff(10 s), which is 0 for attempt 0.
		Name: "autopaho", Library: "Eclipse Paho Go (MQTT 5) 0.23.0",
		Source: "eclipse/paho.golang: autopaho/net.go establishServerConnection, autopaho/backoff.go NewConstantBackoff, autopaho/auto.go",
		delay: func(attempt int, _ *rand.Rand) time.Duration {
			if attempt == 0 {
				return 0
			}
			return 10 * time.Second
		},
	},
	{
		// MQTTAsync_startConnectRetry: minRetryInterval (1 s) doubled up to maxRetryInterval (60 s), then MQTTAsync_randomJitter in
		// whole seconds. MQTTAsync_checkTimeouts looks only every 3 s, so a client waits for up to 3 s more.
		Name: "paho-c", Library: "Eclipse Paho C (MQTTAsync, automaticReconnect) 1.3.13",
		Source: "eclipse/paho.mqtt.c: src/MQTTAsyncUtils.c MQTTAsync_startConnectRetry, MQTTAsync_randomJitter, MQTTAsync_checkTimeouts; src/MQTTAsync.h",
		delay: func(attempt int, r *rand.Rand) time.Duration {
			base := int64(doubling(attempt, time.Second, time.Minute) / time.Second)
			longest := int64(float64(base) * 1.2)
			shortest := int64(float64(base) / 1.2)
			jittered := time.Duration(shortest+r.Int64N(longest-shortest+1)) * time.Second
			return jittered + time.Duration(r.Int64N(int64(3*time.Second)))
		},
	},
	{
		// startReconnectCycle: 1,000 ms, doubled after each failure while below maxReconnectDelay (128,000 ms); reset on success.
		Name: "paho-java", Library: "Eclipse Paho Java (automaticReconnect) 1.2.5",
		Source: "eclipse/paho.mqtt.java: MqttAsyncClient.java startReconnectCycle, MqttReconnectActionListener; MqttConnectOptions.java",
		delay: func(attempt int, _ *rand.Rand) time.Duration {
			return doubling(attempt, time.Second, 128*time.Second)
		},
	},
	{
		// _reconnect_wait: reconnect_min_delay (1 s), doubled up to reconnect_max_delay (120 s); reset by a CONNACK.
		Name: "paho-python", Library: "Eclipse Paho Python (loop_forever, loop_start) 2.1.0",
		Source: "eclipse/paho.mqtt.python: src/paho/mqtt/client.py _reconnect_wait, reconnect_delay_set",
		delay: func(attempt int, _ *rand.Rand) time.Duration {
			return doubling(attempt, time.Second, 120*time.Second)
		},
	},
	{
		// _setupReconnect: a timer of reconnectPeriod (1,000 ms), started by each close.
		Name: "mqttjs", Library: "MQTT.js 5.14.1",
		Source: "mqttjs/MQTT.js: src/lib/client.ts defaultConnectOptions, _setupReconnect",
		delay:  func(int, *rand.Rand) time.Duration { return time.Second },
	},
	{
		// esp_mqtt_abort_connection waits for reconnect_timeout_ms: MQTT_RECON_DEFAULT_MS (10 s), always.
		Name: "esp", Library: "esp-mqtt 1.1.0",
		Source: "espressif/esp-mqtt: mqtt_client.c esp_mqtt_abort_connection, lib/include/mqtt_config.h MQTT_RECON_DEFAULT_MS",
		delay:  func(int, *rand.Rand) time.Duration { return 10 * time.Second },
	},
	{
		// s_update_reconnect_delay_for_pending_reconnect: full jitter, evenly from 0 to 2^attempt × 1 s, cut (after the draw) at
		// 120 s; the count starts anew after 30 s of connection.
		Name: "aws", Library: "AWS IoT Device SDK v2, MQTT 5 client (aws-c-mqtt 0.16.2)",
		Source:  "awslabs/aws-c-mqtt: source/v5/mqtt5_client.c s_update_reconnect_delay_for_pending_reconnect, include/aws/mqtt/private/v5/mqtt5_utils.h",
		Settles: 30 * time.Second,
		delay: func(attempt int, r *rand.Rand) time.Duration {
			longest := time.Second << min(attempt, 32) // 136 years: the draw is cut at 120 s as theirs
			drawn := time.Duration(r.Int64N(int64(longest/time.Millisecond)+1)) * time.Millisecond
			return min(drawn, 120*time.Second)
		},
	},
	{
		// s_aws_mqtt_schedule_reconnect_task: 1 s doubled up to 128 s, no jitter; the wait starts anew after 10 s of connection.
		Name: "aws311", Library: "AWS IoT Device SDK v2, MQTT 3.1.1 client (aws-c-mqtt 0.16.2)",
		Source:  "awslabs/aws-c-mqtt: source/client.c s_aws_mqtt_schedule_reconnect_task, s_attempt_reconnect, AWS_RESET_RECONNECT_BACKOFF_DELAY_SECONDS",
		Settles: 10 * time.Second,
		delay: func(attempt int, _ *rand.Rand) time.Duration {
			return doubling(attempt, time.Second, 128*time.Second)
		},
	},
}

// doubling is first × 2^n, at most longest.
func doubling(n int, first, longest time.Duration) time.Duration {
	for range n {
		if first >= longest {
			break
		}
		first *= 2
	}
	return min(first, longest)
}

// Fixed waits equally long before each attempt.
func Fixed(d time.Duration) Profile {
	return Profile{
		Name: "fixed:" + d.String(), Library: "none: the same wait each time",
		delay: func(int, *rand.Rand) time.Duration { return d },
	}
}

// Profiles returns all profiles that have a name of their own.
func Profiles() []Profile { return slices.Clone(profiles) }

// ParseRetry returns the profile of a name, or fixed:DURATION.
func ParseRetry(name string) (Profile, error) {
	if text, ok := strings.CutPrefix(name, "fixed:"); ok {
		d, err := time.ParseDuration(text)
		if err != nil || d < 0 || d > MaxSpan {
			return Profile{}, fmt.Errorf("%w: expected fixed: and a duration, such as fixed:500ms, not %q", ErrRetry, name)
		}
		return Fixed(d), nil
	}
	var known []string
	for _, p := range profiles {
		if p.Name == name {
			return p, nil
		}
		known = append(known, p.Name)
	}
	return Profile{}, fmt.Errorf("%w %q: there are %s and fixed:DURATION", ErrRetry, name, strings.Join(known, ", "))
}
