/* Writes the request's body to stdout as it is: head lines, blank line and body are the test's to choose.
 * ?log=TEXT goes to stderr, ?exit=N is the exit code, ?trap=1 traps at the end. */
#include "skerry.h"
#include <unistd.h>

int main(void) {
  static char buffer[65536];
  char text[4096];
  ssize_t size;
  while ((size = read(0, buffer, sizeof buffer)) > 0) fwrite(buffer, 1, (size_t)size, stdout);
  fflush(stdout);
  if (skerry_parameter("log", text, sizeof text)) fputs(text, stderr);
  if (skerry_parameter("trap", text, sizeof text)) __builtin_trap();
  return skerry_parameter("exit", text, sizeof text) ? atoi(text) : 0;
}
