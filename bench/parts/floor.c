/* The floor under a call that takes two hops: what the kernel lets through where next to nothing is done.
 *
 * `floor PORT`: a front reads HTTP/1.1 from its clients and passes each request's body to a worker over a Unix socket;
 * the worker, a process of its own, sends all it reads back, and the front answers with that. Both wait by epoll, all
 * requests of a round of epoll go over in one write, and an answer is one write. It knows content-length alone, and ends
 * where anything is odd: it is for measuring, on 127.0.0.1.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { DESCRIPTORS = 4096, REQUEST = 16384, ROUND = 64, PIPE = ROUND * REQUEST, HEAD = 128 };

/* Before each body on the Unix socket; client and size are the front's own, which come back. */
typedef struct {
  uint32_t client, size;
} Frame;

/* Bytes that were read and not yet used. */
typedef struct {
  uint32_t have;
  char bytes[REQUEST];
} Client;

static Client *clients[DESCRIPTORS];
static char sent[PIPE], got[PIPE + REQUEST];
static size_t sending, receiving;

static void must(int fine, const char *what) {
  if (!fine) {
    perror(what);
    exit(1);
  }
}

static void watch(int epoll, int descriptor) {
  struct epoll_event event = {.events = EPOLLIN, .data.fd = descriptor};
  must(!epoll_ctl(epoll, EPOLL_CTL_ADD, descriptor, &event), "epoll_ctl");
}

static void worker(int front) {
  int epoll = epoll_create1(EPOLL_CLOEXEC);
  struct epoll_event event;
  must(epoll >= 0, "epoll_create1");
  watch(epoll, front);
  for (;;) {
    must(epoll_wait(epoll, &event, 1, -1) == 1, "epoll_wait");
    ssize_t size = recv(front, got, sizeof got, 0);
    if (size <= 0) /* the front has ended */
      exit(0);
    must(send(front, got, (size_t)size, MSG_NOSIGNAL) == size, "the worker's send");
  }
}

static void accept_client(int epoll, int listener) {
  int one = 1, client = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
  must(client >= 0 && client < DESCRIPTORS, "accept");
  must(!setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one), "TCP_NODELAY");
  clients[client] = calloc(1, sizeof(Client));
  must(clients[client] != NULL, "calloc");
  watch(epoll, client);
}

/* The bytes of the whole request at `at`, its body's size in `size`; 0 where more must come. */
static size_t whole(const char *at, size_t left, uint32_t *size) {
  static const char name[] = "\r\nContent-Length: ";
  const char *end = memmem(at, left, "\r\n\r\n", 4), *length;
  if (!end)
    return 0;
  length = memmem(at, (size_t)(end - at), name, sizeof name - 1);
  *size = length ? (uint32_t)strtoul(length + sizeof name - 1, NULL, 10) : 0;
  must(*size < REQUEST, "a body that is too large");
  size_t all = (size_t)(end + 4 - at) + *size;
  return all <= left ? all : 0;
}

static void read_client(int client) {
  Client *of = clients[client];
  ssize_t size = recv(client, of->bytes + of->have, REQUEST - of->have, 0);
  if (size <= 0) {
    close(client);
    free(of);
    clients[client] = NULL;
    return;
  }
  of->have += (uint32_t)size;
  size_t at = 0, all;
  Frame frame = {.client = (uint32_t)client};
  while ((all = whole(of->bytes + at, of->have - at, &frame.size))) {
    must(sending + sizeof frame + frame.size <= PIPE, "too much in one round");
    memcpy(sent + sending, &frame, sizeof frame);
    at += all;
    memcpy(sent + sending + sizeof frame, of->bytes + at - frame.size, frame.size);
    sending += sizeof frame + frame.size;
  }
  of->have -= (uint32_t)at;
  memmove(of->bytes, of->bytes + at, of->have);
}

static void read_worker(int worker) {
  static char answer[HEAD + REQUEST];
  ssize_t size = recv(worker, got + receiving, sizeof got - receiving, 0);
  must(size > 0, "the worker has ended");
  receiving += (size_t)size;
  size_t at = 0;
  Frame frame;
  while (receiving - at >= sizeof frame) {
    memcpy(&frame, got + at, sizeof frame);
    if (receiving - at - sizeof frame < frame.size)
      break;
    int head = snprintf(answer, HEAD, "HTTP/1.1 200 OK\r\ncontent-length: %u\r\n\r\n", frame.size);
    memcpy(answer + head, got + at + sizeof frame, frame.size);
    /* It may have left meanwhile. */
    (void)send((int)frame.client, answer, (size_t)head + frame.size, MSG_NOSIGNAL);
    at += sizeof frame + frame.size;
  }
  receiving -= at;
  memmove(got, got + at, receiving);
}

int main(int count, char **arguments) {
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  struct epoll_event events[ROUND];
  int pair[2], one = 1;
  must(count == 2, "usage: floor PORT");
  address.sin_port = htons((uint16_t)atoi(arguments[1]));
  must(!socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), "socketpair");
  pid_t child = fork();
  must(child >= 0, "fork");
  if (!child) {
    close(pair[0]);
    worker(pair[1]);
  }
  close(pair[1]);
  // Last: whoever reaches the front finds its worker.
  int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  must(!setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one), "SO_REUSEADDR");
  must(!bind(listener, (struct sockaddr *)&address, sizeof address) && !listen(listener, 1024), "listen");
  int epoll = epoll_create1(EPOLL_CLOEXEC);
  must(epoll >= 0, "epoll_create1");
  watch(epoll, listener);
  watch(epoll, pair[0]);
  for (;;) {
    int ready = epoll_wait(epoll, events, ROUND, -1);
    for (int i = 0; i < ready; i++) {
      int descriptor = events[i].data.fd;
      if (descriptor == listener)
        accept_client(epoll, listener);
      else if (descriptor == pair[0])
        read_worker(pair[0]);
      else
        read_client(descriptor);
    }
    if (sending)
      must(send(pair[0], sent, sending, MSG_NOSIGNAL) == (ssize_t)sending, "the front's send");
    sending = 0;
  }
}
