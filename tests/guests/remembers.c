/* Answers with what its initialiser, `warm`, found at build. Each call begins with `anew`, which draws a random number
 * and reads the environment. */
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <time.h>
#include <unistd.h>
#include <wasi/api.h>

#include "skerry_direct.h"

static char found[1024], given[64];
static uint64_t built, second, drawn;
static int calls;
static char *big;

static uint64_t now(clockid_t clock) {
  struct timespec time;
  return clock_gettime(clock, &time) ? ~0ull : (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

__attribute__((export_name("anew"))) void anew(void) {
  getentropy(&drawn, sizeof drawn);
  const char *word = getenv("WORD");
  snprintf(given, sizeof given, "%s", word ? word : "none");
}

__attribute__((export_name("warm"))) void warm(void) {
  char text[64];
  __wasi_size_t arguments = 9, variables = 9, size;
  fputs("a line in the log\n", stderr);
  ssize_t length = read(0, text, sizeof text);
  (void)!__wasi_args_sizes_get(&arguments, &size);
  (void)!__wasi_environ_sizes_get(&variables, &size);
  int file = open("/etc/passwd", O_RDONLY), refused = errno;
  getentropy(&built, sizeof built);
  getentropy(&second, sizeof second);
  snprintf(found, sizeof found, "stdin %.*s, %zu arguments, %zu variables, file %s, year %llu, clock %s", (int)length, text,
           (size_t)arguments, (size_t)variables, file < 0 && refused ? "refused" : "there",
           (unsigned long long)now(CLOCK_REALTIME), now(CLOCK_MONOTONIC) < 1000000 ? "begins" : "runs");
  if ((big = malloc(300000))) memset(big, 7, 300000);
}

skerry_answer skerry_main(const skerry_request *request) {
  char text[2048];
  (void)request;
  snprintf(text, sizeof text, "%s; big %d; call %d; built %llx %llx; %s %llx", found, big[299999], ++calls,
           (unsigned long long)built, (unsigned long long)second, given, (unsigned long long)drawn);
  return skerry_respond_text(200, "Content-Type: text/plain\n", text);
}
