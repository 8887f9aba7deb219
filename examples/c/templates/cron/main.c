/* The node calls this by the schedule in function.toml, and a tick is kept in the table. GET lists the last ten. */
#include "skerry.h"

static char *run(const char *statement, int count, const char *const parameters[]) {
  char *found = skerry_sql(statement, count, parameters);
  if (found && strncmp(found, "{\"error\"", 8) != 0) return found;
  /* What goes to stderr is the node's log. A status other than 0 undoes what the call wrote: the tick has failed. */
  fprintf(stderr, "%s: %s\n", statement, found ? found : "out of memory");
  exit(1);
}

int main(void) {
  /* No client can send these headers. */
  const char *event = getenv("HTTP_SKERRY_EVENT"), *due[] = {getenv("HTTP_SKERRY_SCHEDULED_AT")}, *cell;
  if (event && strcmp(event, "schedule") == 0) {
    run("INSERT INTO notes (due) VALUES (?)", 1, due);
    run("DELETE FROM notes WHERE due < strftime('%Y-%m-%dT%H:%M:%SZ', ?, '-30 days')", 1, due);
    printf("Content-Type: application/json\n\n{\"kept\":true}\n");
  } else if (strcmp(getenv("REQUEST_METHOD"), "GET") == 0) {
    char *found = run("SELECT due FROM notes ORDER BY due DESC LIMIT 10", 0, NULL);
    printf("Content-Type: application/json\n\n[");
    for (int row = 0; (cell = skerry_find(found, row, 0)); row++)
      printf("%s%.*s", row ? "," : "", (int)(skerry_skip(cell) - cell), cell);
    printf("]\n");
  } else {
    printf("Status: 405 Method Not Allowed\nAllow: GET\nContent-Type: text/plain\n\nonly the schedule starts it\n");
  }
  return 0;
}
