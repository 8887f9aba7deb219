/* What of C's standard library a function can rely on: a line of name and value for each. */
#include "skerry.h"

#include <dirent.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

int main(int argc, char **argv) {
  const char *path = getenv("PATH_INFO");
  if (path && strcmp(path, "/exit") == 0) exit(3);
  if (path && strcmp(path, "/panic") == 0) {
    fprintf(stderr, "on purpose\n");
    abort();
  }
  struct timespec began, ended, pause = {0, 20000000}, now;
  clock_gettime(CLOCK_MONOTONIC, &began);
  nanosleep(&pause, NULL);
  clock_gettime(CLOCK_MONOTONIC, &ended);
  clock_gettime(CLOCK_REALTIME, &now);
  unsigned char random[8];
  int drawn = getentropy(random, sizeof random), variables = 0;
  for (char **variable = environ; *variable; variable++) variables++;
  unsigned long long sum = 0, memory = 0, *large = malloc(8 * 1000000);
  for (int byte; (byte = getchar()) != EOF;) sum += (unsigned)byte;
  for (unsigned i = 0; large && i < 1000000; i++) memory += large[i] = i;
  printf("Content-Type: text/plain\n\n");
  printf("clock %d\n", now.tv_sec > 1735689600);
  printf("sleep %d\n", (ended.tv_sec - began.tv_sec) * 1000000000LL + ended.tv_nsec - began.tv_nsec >= 20000000);
  printf("random %d", drawn);
  for (size_t i = 0; i < sizeof random; i++) printf(" %d", random[i]);
  printf("\nvariable %s\n", getenv("GREETING"));
  printf("variables %d\n", variables > 8);
  printf("arguments %d %s\n", argc, argv[0]);
  printf("body %llu\n", sum);
  printf("memory %llu\n", memory);
  printf("read %d\n", !fopen("/etc/passwd", "r") && errno);
  printf("write %d\n", !fopen("made", "w") && errno);
  printf("list %d\n", !opendir("/") && errno);
  printf("number %g\n", strtod("1.5e3", NULL) + floor(pow(2, 0.5)));
  printf("http %d\n", strstr(skerry_http("{\"url\":\"https://a.example/\"}"), "not_granted") != NULL);
  fprintf(stderr, "a line in the log\n");
  return 0;
}
