/* Answers with the request's body. */
#include <stdio.h>
#include <unistd.h>

int main(void) {
  static char buffer[65536];
  ssize_t size;
  fputs("Content-Type: application/octet-stream\n\n", stdout);
  while ((size = read(0, buffer, sizeof buffer)) > 0) fwrite(buffer, 1, (size_t)size, stdout);
  return 0;
}
