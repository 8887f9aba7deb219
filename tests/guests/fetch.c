/* Passes each line of the body to skerry.http, or to skerry.sql where it begins with SQL and a space, and answers with
 * the answers, a line each. ?env=NAME answers the variable of that name. */
#include "skerry.h"

__attribute__((import_module("skerry"), import_name("http"))) unsigned ask_http(const char *request, size_t size);

int main(void) {
  char name[64];
  char *line = NULL;
  size_t room = 0;
  ssize_t size;
  puts("Content-Type: application/json\n");
  if (skerry_parameter("env", name, sizeof name)) {
    const char *value = getenv(name);
    printf("%s", value ? value : "(none)");
    return 0;
  }
  while ((size = getline(&line, &room, stdin)) > 0) {
    if (line[size - 1] == '\n') size--;
    if (!size) continue;
    unsigned length = strncmp(line, "SQL ", 4) ? ask_http(line, (size_t)size) : skerry_import_sql(line + 4, (size_t)size - 4);
    char *answer = malloc((size_t)length + 1);
    if (!answer) __builtin_trap();
    skerry_import_result(answer);
    fwrite(answer, 1, length, stdout);
    putchar('\n');
    free(answer);
  }
  return 0;
}
