//go:build !linux

package listen

import "net"

// listenConfig has package net set keep-alive on every connection; TCP_NODELAY it sets by itself.
func listenConfig() *net.ListenConfig {
	return &net.ListenConfig{KeepAliveConfig: net.KeepAliveConfig{
		Enable: true, Idle: keepAliveIdle, Interval: keepAliveInterval, Count: keepAliveCount,
	}}
}

// acknowledge does nothing: TCP_QUICKACK is Linux's.
func acknowledge(net.Conn) {}
