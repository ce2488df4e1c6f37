// Package router answers one question: who serves this key? It is pure functions over an immutable View: no sockets, no clocks, no locks.
package router
