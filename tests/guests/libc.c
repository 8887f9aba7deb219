/* What a program sees of WASI through its C library: a line each, `name result errno`. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define SAY(name, call) \
  do { \
    errno = 0; \
    long result = (long)(call); \
    printf("%s %ld %s\n", name, result, errno ? strerrorname(errno) : "-"); \
  } while (0)

static const char *strerrorname(int number) {
  static char text[16];
  switch (number) {
    case EBADF: return "EBADF";
    case EINVAL: return "EINVAL";
    case ENOENT: return "ENOENT";
    case ENOTCAPABLE: return "ENOTCAPABLE";
    case ENOTDIR: return "ENOTDIR";
    case ENOTSOCK: return "ENOTSOCK";
    case ENOTSUP: return "ENOTSUP";
    case ENOTTY: return "ENOTTY";
    case ESPIPE: return "ESPIPE";
  }
  snprintf(text, sizeof text, "%d", number);
  return text;
}

static long long now(clockid_t clock) {
  struct timespec time;
  if (clock_gettime(clock, &time)) return -1;
  return (long long)time.tv_sec * 1000000000 + time.tv_nsec;
}

static void last(void) { printf("atexit 0 -\n"); }

int main(int count, char **arguments) {
  char text[64], zeros[64] = {0};
  struct stat found;
  struct timespec pause = {0, 20000000}, resolution;
  struct timeval today;
  long long begun;

  puts("Content-Type: text/plain\n");
  SAY("arguments", count);
  SAY("argument", arguments[0][0] == '/');
  SAY("method", getenv("REQUEST_METHOD") ? strcmp(getenv("REQUEST_METHOD"), "POST") : -1);
  SAY("nothing", getenv("HOME") != NULL);

  /* stdio */
  for (int fd = 0; fd < 4; fd++) {
    snprintf(text, sizeof text, "isatty%d", fd);
    SAY(text, isatty(fd));
  }
  SAY("read", read(0, text, sizeof text));
  SAY("end", read(0, text, sizeof text));
  SAY("read-stdout", read(1, text, 1));
  SAY("write-stdin", write(0, text, 1));
  SAY("lseek", lseek(0, 0, SEEK_CUR));
  SAY("fstat", fstat(1, &found));
  SAY("getfl", fcntl(1, F_GETFL) >= 0);
  SAY("fsync", fsync(1));
  SAY("ftruncate", ftruncate(1, 0));
  SAY("close", close(2));
  SAY("close-again", close(2));

  /* files: there are none */
  SAY("open", open("/etc/passwd", O_RDONLY));
  SAY("open-relative", open("passwd", O_RDONLY));
  SAY("create", open("/tmp/x", O_WRONLY | O_CREAT, 0600));
  SAY("fopen", fopen("/etc/passwd", "r") != NULL);
  SAY("stat", stat("/", &found));
  SAY("access", access("/etc", R_OK));
  SAY("mkdir", mkdir("/tmp/x", 0700));
  SAY("rename", rename("/a", "/b"));
  SAY("unlink", unlink("/etc/passwd"));
  SAY("opendir", opendir("/") != NULL);
  SAY("openat", openat(0, "x", O_RDONLY));
  SAY("openat-nowhere", openat(9, "x", O_RDONLY));
  SAY("accept", accept(0, NULL, NULL));

  /* clocks and random numbers */
  begun = now(CLOCK_MONOTONIC);
  SAY("monotonic", begun >= 0);
  SAY("realtime", now(CLOCK_REALTIME) / 1000000000 > 1700000000);
  SAY("gettimeofday", gettimeofday(&today, NULL));
  SAY("time", today.tv_sec - time(NULL) < 2);
  SAY("getres", clock_getres(CLOCK_MONOTONIC, &resolution));
  SAY("nanosleep", nanosleep(&pause, NULL));
  SAY("slept", now(CLOCK_MONOTONIC) - begun >= 20000000);
  SAY("usleep", usleep(1000));
  SAY("getentropy", getentropy(text, sizeof text));
  SAY("random", memcmp(text, zeros, sizeof text) != 0);
  SAY("sched_yield", sched_yield());

  /* poll */
  struct pollfd fds[] = {{0, POLLRDNORM, 0}, {1, POLLWRNORM, 0}};
  SAY("poll", poll(fds, 2, 1000));
  SAY("poll-events", (fds[0].revents & (POLLRDNORM | POLLHUP)) != 0 && (fds[1].revents & POLLWRNORM) != 0);
  begun = now(CLOCK_MONOTONIC);
  SAY("poll-nothing", poll(NULL, 0, 20));
  SAY("poll-slept", now(CLOCK_MONOTONIC) - begun >= 20000000);

  void *large = malloc(3000000);
  SAY("malloc", large != NULL);
  memset(large, 1, 3000000);
  atexit(last);
  exit(0);
}
