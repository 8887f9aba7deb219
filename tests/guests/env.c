/* Answers with its arguments and environment, a line each. */
#include <stdio.h>

extern char **environ;

int main(int count, char **arguments) {
  puts("Content-Type: text/plain\n");
  for (int i = 0; i < count; i++) printf("argument %d: %s\n", i, arguments[i]);
  for (char **variable = environ; *variable; variable++) puts(*variable);
  return 0;
}
