/* By WAGI: `warm` runs at build, and main in each call. */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static unsigned table[100000];
static unsigned calls;
static char *text;

__attribute__((export_name("warm"))) void warm(void) {
  for (unsigned i = 0; i < 100000; i++) table[i] = i;
  text = malloc(64);
  snprintf(text, 64, "%u", table[99999]);
}

int main(void) {
  unsigned long long random;
  getentropy(&random, sizeof random);
  printf("Content-Type: text/plain\n\nleft %s\ncalls %u\nvariable %s\nrandom %llx\n", text, ++calls, getenv("WORD"), random);
  return 0;
}
