/* A slow reader: SELECTs the schema's number, waits ?ms= milliseconds (asleep, or busy with &busy=1), SELECTs again, and
 * answers {"first":n,"second":n}: in one transaction both are the same. */
#include "skerry.h"
#include <time.h>
#include <unistd.h>

static void wait_for(long milliseconds, bool busy) {
  if (!busy) {
    usleep((unsigned)milliseconds * 1000);
    return;
  }
  struct timespec start, now;
  clock_gettime(CLOCK_MONOTONIC, &start);
  do clock_gettime(CLOCK_MONOTONIC, &now);
  while ((now.tv_sec - start.tv_sec) * 1000 + (now.tv_nsec - start.tv_nsec) / 1000000 < milliseconds);
}

int main(void) {
  char text[32], first[64], second[64];
  long milliseconds = skerry_parameter("ms", text, sizeof text) ? atol(text) : 100;
  bool busy = skerry_parameter("busy", text, sizeof text);
  char *answer = skerry_sql("SELECT number FROM generation", 0, NULL);
  bool good = skerry_cell(answer, 0, 0, first, sizeof first);
  wait_for(milliseconds, busy);
  char *again = skerry_sql("SELECT number FROM generation", 0, NULL);
  if (!good || !skerry_cell(again, 0, 0, second, sizeof second)) {
    printf("Status: 500\nContent-Type: application/json\n\n%s\n", good ? again : answer);
    return 0;
  }
  printf("Content-Type: application/json\n\n{\"first\":%s,\"second\":%s}\n", first, second);
  return 0;
}
