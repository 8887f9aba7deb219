/* Notes in `ran` the tick that calls it, or what a client says of one. By its configuration it sends an HTTP request first
 * (ASK, in JSON), has SQL (SQL=1), sleeps so many milliseconds after it (SLEEP), and answers a status (STATUS). */
#include "skerry.h"
#include <unistd.h>

static const char *given(const char *name, const char *otherwise) {
  const char *value = getenv(name);
  return value ? value : otherwise;
}

int main(void) {
  const char *parameters[] = {given("HTTP_SKERRY_EVENT", ""), given("HTTP_SKERRY_SCHEDULED_AT", ""),
                              given("HTTP_SKERRY_CRON", "")};
  if (*given("ASK", "")) free(skerry_http(given("ASK", "")));
  if (*given("SQL", "")) free(skerry_sql("INSERT INTO ran (event, at, cron) VALUES (?, ?, ?)", 3, parameters));
  usleep((unsigned)atoi(given("SLEEP", "0")) * 1000);
  printf("Status: %s\nContent-Type: text/plain\n\n%s|%s|%s", given("STATUS", "200"), parameters[0], parameters[1],
         parameters[2]);
  return 0;
}
