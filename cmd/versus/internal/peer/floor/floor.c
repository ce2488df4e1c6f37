// The least that a relay with epoll can do: what it costs is the kernel's, and no relay that reads and writes every message costs less.
//
//   floor LISTEN BROKER...     each an IPv4 address and a port
//
// One thread, edge-triggered: accept, one read of the CONNECT, connect, PROXY v2 header and CONNECT in one send; from then on one recv and one
// send for each event. It parses, counts, times out and keeps nothing. A broker is chosen by a hash of all that the client said first. It
// is not to be used: bytes that do not fit into a socket are lost, and both sides are closed with the first that ends.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { header = 28, events = 256, descriptors = 1 << 20 };

static int peer[descriptors];
static char buf[65536];

static struct sockaddr_in address(const char *text) {
	struct sockaddr_in sa = {.sin_family = AF_INET};
	char ip[16];
	int port;
	if (sscanf(text, "%15[0-9.]:%d", ip, &port) != 2 || inet_pton(AF_INET, ip, &sa.sin_addr) != 1) {
		fprintf(stderr, "floor: %s: expected an IPv4 address and a port\n", text);
		exit(2);
	}
	sa.sin_port = htons(port);
	return sa;
}

static void watch(int ep, int fd) {
	struct epoll_event ev = {.events = EPOLLIN | EPOLLRDHUP | EPOLLET, .data.fd = fd};
	epoll_ctl(ep, EPOLL_CTL_ADD, fd, &ev);
}

int main(int argc, char **argv) {
	if (argc < 3) {
		fprintf(stderr, "usage: floor LISTEN BROKER...\n");
		return 2;
	}
	struct sockaddr_in here = address(argv[1]);
	int ls = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), ep = epoll_create1(0), one = 1;
	setsockopt(ls, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	setsockopt(ls, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one); // inherited
	setsockopt(ls, IPPROTO_TCP, TCP_DEFER_ACCEPT, &one, sizeof one);
	if (bind(ls, (void *)&here, sizeof here) || listen(ls, 16384)) {
		perror("floor: listen");
		return 1;
	}
	struct epoll_event ev = {.events = EPOLLIN, .data.fd = ls}, evs[events];
	epoll_ctl(ep, EPOLL_CTL_ADD, ls, &ev);
	for (;;) {
		int n = epoll_wait(ep, evs, events, -1);
		for (int i = 0; i < n; i++) {
			int fd = evs[i].data.fd;
			if (fd != ls) {
				int to = peer[fd];
				if (!to) // closed in this turn
					continue;
				ssize_t k = recv(fd, buf, sizeof buf, MSG_DONTWAIT);
				if (k > 0)
					send(to, buf, k, MSG_DONTWAIT | MSG_NOSIGNAL);
				else if (k == 0 || errno != EAGAIN) {
					peer[fd] = peer[to] = 0;
					close(fd);
					close(to);
				}
				continue;
			}
			for (;;) {
				struct sockaddr_in from;
				socklen_t len = sizeof from;
				int client = accept4(ls, (void *)&from, &len, SOCK_NONBLOCK);
				if (client < 0)
					break;
				ssize_t k = recv(client, buf + header, sizeof buf - header, MSG_DONTWAIT);
				if (k <= 0 || client >= descriptors) {
					close(client);
					continue;
				}
				unsigned hash = 0;
				for (ssize_t q = 0; q < k; q++)
					hash = hash * 31 + (unsigned char)buf[header + q];
				struct sockaddr_in to = address(argv[2 + hash % (argc - 2)]);
				int broker = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
				setsockopt(broker, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
				connect(broker, (void *)&to, sizeof to); // on one machine it stands at once
				memcpy(buf, "\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c", 16);
				memcpy(buf + 16, &from.sin_addr, 4);
				memcpy(buf + 20, &here.sin_addr, 4);
				memcpy(buf + 24, &from.sin_port, 2);
				memcpy(buf + 26, &here.sin_port, 2);
				send(broker, buf, k + header, MSG_DONTWAIT | MSG_NOSIGNAL);
				peer[client] = broker;
				peer[broker] = client;
				watch(ep, client);
				watch(ep, broker);
			}
		}
	}
}
