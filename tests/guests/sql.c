/* Passes each line of the body to skerry.sql as it is and answers with the answers, a line each.
 * ?status=N answers that status, ?sleep=N sleeps so many milliseconds after each statement, ?trap=1 and ?exit=N as in
 * raw.c. Made for readers and writers of every kind. */
#include "skerry.h"
#include <unistd.h>

int main(void) {
  char text[32];
  char *line = NULL;
  size_t room = 0;
  ssize_t size;
  int pause = skerry_parameter("sleep", text, sizeof text) ? atoi(text) : 0;
  printf("Status: %s\nContent-Type: application/json\n\n", skerry_parameter("status", text, sizeof text) ? text : "200");
  while ((size = getline(&line, &room, stdin)) > 0) {
    if (line[size - 1] == '\n') size--;
    if (!size) continue;
    unsigned length = skerry_import_sql(line, (size_t)size);
    char *answer = malloc((size_t)length + 1);
    if (!answer) __builtin_trap();
    skerry_import_result(answer);
    fwrite(answer, 1, length, stdout);
    putchar('\n');
    free(answer);
    if (pause) usleep((unsigned)pause * 1000);
  }
  fflush(stdout);
  if (skerry_parameter("trap", text, sizeof text)) __builtin_trap();
  return skerry_parameter("exit", text, sizeof text) ? atoi(text) : 0;
}
