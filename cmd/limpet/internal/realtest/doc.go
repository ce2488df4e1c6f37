// Package realtest is test gear and tests only: the built limpet binary, real stores, real brokers and other people's MQTT
// clients, put together as a site would.
//
//	go test ./cmd/limpet/internal/realtest
//	LIMPET_DRILLS=1 go test -count=1 -v -run TestConnack ./cmd/limpet/internal/realtest
//
// Every part of a mesh is a process of its own, so that any can be killed or frozen by itself: `limpet store`, three edges with all
// their listeners, and brokers. What the tests say of a broker is seen at the broker, what they say of a record is read from
// etcd. A program that is missing (mosquitto, RabbitMQ, node) fails a test where CI=true is set and skips it elsewhere.
//
// The gear is in the files named rig_*; nothing of it leaves this package.
package realtest
