/* A function of the ABI `direct` with everything that one can do. The path says what:
 * /echo the request as it came, a line for each text; /body the body as it is; /sql passes each line of the body to
 * skerry.sql; /env the value of ?name=; /log writes to stdout and stderr; /trap, /exit; /status answers ?code=. */
#include "skerry.h"
#include "skerry_direct.h"

static const char text[] = "Content-Type: text/plain\n";

static skerry_answer show(const skerry_request *r) {
  char header[256] = "", parameter[256] = "";
  skerry_header(r, "x-thing", header, sizeof header);
  skerry_value(r->params, "id", parameter, sizeof parameter);
  size_t size = strlen(r->headers) + strlen(r->query) + strlen(r->path) + 2048;
  char *out = malloc(size);
  snprintf(out, size, "method %s\npath %s\nquery %s\nscript %s\nroute %s\nparams %s\nclient %s\nx-thing %s\nid %s\n%s",
           r->method, r->path, r->query, r->script, r->route, r->params, r->client, header, parameter, r->headers);
  return skerry_respond_text(200, text, out);
}

static skerry_answer ask(const skerry_request *r) {
  unsigned size = skerry_import_sql(r->body, r->body_size);
  char *answer = malloc(size + 1);
  skerry_import_result(answer);
  return skerry_respond(200, "Content-Type: application/json\n", answer, size);
}

skerry_answer skerry_main(const skerry_request *r) {
  char value[64] = "";
  skerry_value(r->query, "code", value, sizeof value);
  if (!strcmp(r->path, "/echo")) return show(r);
  if (!strcmp(r->path, "/body")) return skerry_respond(200, text, r->body, r->body_size);
  if (!strcmp(r->path, "/sql")) return ask(r);
  if (!strcmp(r->path, "/trap")) __builtin_trap();
  if (!strcmp(r->path, "/exit")) exit(atoi(value));
  if (!strcmp(r->path, "/status")) return skerry_respond((unsigned)atoi(value), "", "", 0);
  if (!strcmp(r->path, "/log")) {
    puts("to stdout");
    fputs("to stderr", stderr);
    fflush(stdout);
    return skerry_respond_text(200, text, "logged");
  }
  if (!strcmp(r->path, "/env")) {
    const char *found = skerry_value(r->query, "name", value, sizeof value) ? getenv(value) : NULL;
    return skerry_respond_text(found ? 200 : 404, text, found ? found : "");
  }
  return skerry_respond_text(404, text, "what?");
}
