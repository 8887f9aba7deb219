/* SELECTs an item by ?id= and answers with the rows, by the ABI `direct`: for a benchmark. */
#include "skerry.h"
#include "skerry_direct.h"

skerry_answer skerry_main(const skerry_request *request) {
  char id[16], *asked = skerry_room(128);
  if (!asked || !skerry_value(request->query, "id", id, sizeof id) || strspn(id, "0123456789") != strlen(id))
    return skerry_respond_text(400, "Content-Type: text/plain\n", "which id?");
  char *end = stpcpy(asked, "{\"sql\":\"SELECT name, price FROM items WHERE id = ?\",\"params\":[");
  end = stpcpy(stpcpy(end, id), "]}");
  unsigned size = skerry_import_sql(asked, (size_t)(end - asked));
  char *answer = skerry_room(size + 1);
  if (!answer) __builtin_trap();
  skerry_import_result(answer);
  answer[size] = 0;
  const char *rows = strstr(answer, "\"rows\":");
  if (!rows) return skerry_respond(500, "Content-Type: application/json\n", answer, size);
  rows += strlen("\"rows\":");
  return skerry_respond(200, "Content-Type: application/json\n", rows, (size_t)(skerry_skip(rows) - rows));
}
