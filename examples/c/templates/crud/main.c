/* Notes as JSON: GET / lists them, POST / creates one; GET, PUT and DELETE /ID read, replace and delete one.
 * SQLite reads the request's JSON and makes the answer's. All SQL of one call is one transaction. */
#include "skerry.h"

#define NOTE "json_object('id', id, 'title', title, 'text', text)"
#define LIST "SELECT json_group_array(" NOTE ") FROM (SELECT * FROM notes ORDER BY id)"
#define READ "SELECT " NOTE " FROM notes WHERE id = ?1"
#define CREATE "INSERT INTO notes (title, text) VALUES (?1 ->> 'title', coalesce(?1 ->> 'text', '')) RETURNING " NOTE
#define REPLACE \
  "UPDATE notes SET title = ?2 ->> 'title', text = coalesce(?2 ->> 'text', '') WHERE id = ?1 RETURNING " NOTE
#define DELETE "DELETE FROM notes WHERE id = ?1 RETURNING " NOTE
/* CASE, as SQLite would fail on a text that isn't JSON. */
#define VALID                                                                                                 \
  "SELECT CASE WHEN json_valid(?1) THEN json_type(?1, '$.title') IS 'text' AND length(?1 ->> 'title') BETWEEN 1 AND " \
  "100 AND coalesce(json_type(?1, '$.text'), 'text') = 'text' ELSE 0 END"

/* The one cell of a statement's answer; NULL where it gives no row. */
static char *cell(const char *statement, const char *first, const char *second) {
  const char *parameters[] = {first, second};
  char *found = skerry_sql(statement, !!first + !!second, parameters);
  char *text = found ? malloc(strlen(found)) : NULL;
  if (!text || strncmp(found, "{\"error\"", 8) == 0) {
    /* What goes to stderr is the node's log. A status other than 0 undoes what the call wrote; the answer is a 502. */
    fprintf(stderr, "%s: %s\n", statement, found ? found : "out of memory");
    exit(1);
  }
  return skerry_cell(found, 0, 0, text, strlen(found)) ? text : NULL;
}

static void answer(const char *status, const char *note) {
  if (!note) status = "404 Not Found", note = "{\"error\":\"there is no such note\"}";
  printf("Status: %s\nContent-Type: application/json\n\n%s\n", status, note);
}

static bool is(const char *method) { return strcmp(getenv("REQUEST_METHOD"), method) == 0; }

int main(void) {
  const char *id = getenv("PATH_INFO");
  if (*id == '/') id++;
  bool one = *id;
  size_t size;
  char *note = skerry_body(&size);
  if (!note) return 1;

  if ((is("POST") || is("PUT")) && strcmp(cell(VALID, note, NULL), "1") != 0) {
    answer("400 Bad Request", "{\"error\":\"send JSON: a title of 1 to 100 characters, and a text if there is one\"}");
  } else if (!one && is("GET")) {
    answer("200 OK", cell(LIST, NULL, NULL));
  } else if (!one && is("POST")) {
    answer("201 Created", cell(CREATE, note, NULL));
  } else if (one && is("GET")) {
    answer("200 OK", cell(READ, id, NULL));
  } else if (one && is("PUT")) {
    answer("200 OK", cell(REPLACE, id, note));
  } else if (one && is("DELETE")) {
    answer("200 OK", cell(DELETE, id, NULL));
  } else {
    printf("Allow: %s\n", one ? "GET, PUT, DELETE" : "GET, POST");
    answer("405 Method Not Allowed", "{\"error\":\"not by this method\"}");
  }
  return 0;
}
