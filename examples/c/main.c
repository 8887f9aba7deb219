/* Notes by author: POST ?author=ada keeps the body as a note, GET ?author=ada lists ada's notes. */
#include "skerry.h"

static void answer(const char *status, const char *json) {
  printf("Status: %s\nContent-Type: application/json\n\n%s\n", status, json);
}

int main(void) {
  char author[256], quoted[6 * sizeof author + 3];
  if (!skerry_parameter("author", author, sizeof author)) {
    answer("400 Bad Request", "{\"error\":\"say whose notes: ?author=NAME\"}");
    return 0;
  }
  skerry_json(quoted, author);

  const char *method = getenv("REQUEST_METHOD");
  if (strcmp(method, "POST") == 0) {
    size_t size;
    char *text = skerry_body(&size), id[32];
    if (!text) return 1;
    const char *parameters[] = {author, text};
    char *found = skerry_sql("INSERT INTO notes (author, text) VALUES (?, ?) RETURNING id", 2, parameters);
    if (!skerry_cell(found, 0, 0, id, sizeof id)) {
      /* What goes to stderr is the node's log, and a status of 500 and above undoes what the call wrote. */
      fprintf(stderr, "the note wasn't kept: %s\n", found);
      answer("500 Internal Server Error", "{\"error\":\"the database refused it\"}");
      return 0;
    }
    printf("Status: 201 Created\nContent-Type: application/json\n\n{\"author\":%s,\"id\":%s}\n", quoted, id);
  } else if (strcmp(method, "GET") == 0) {
    const char *parameters[] = {author}, *cell;
    char *found = skerry_sql("SELECT text FROM notes WHERE author = ? ORDER BY id", 1, parameters);
    if (!found || strncmp(found, "{\"error\"", 8) == 0) {
      fprintf(stderr, "the notes can't be read: %s\n", found);
      answer("500 Internal Server Error", "{\"error\":\"the database refused it\"}");
      return 0;
    }
    printf("Content-Type: application/json\n\n{\"author\":%s,\"notes\":[", quoted);
    for (int row = 0; (cell = skerry_find(found, row, 0)); row++)
      printf("%s%.*s", row ? "," : "", (int)(skerry_skip(cell) - cell), cell);
    printf("]}\n");
  } else {
    printf("Allow: GET, POST\n");
    answer("405 Method Not Allowed", "{\"error\":\"only GET and POST\"}");
  }
  return 0;
}
