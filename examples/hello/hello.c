/* Greets in the language that the database knows: GET /functions/hello?name=Ada&language=ja */
#include "skerry.h"

int main(void) {
  char name[256] = "world", language[16] = "en", greeting[256];
  skerry_parameter("name", name, sizeof name);
  skerry_parameter("language", language, sizeof language);

  const char *parameters[] = {language};
  char *answer = skerry_sql("SELECT text FROM greetings WHERE language = ?", 1, parameters);
  if (!answer || strncmp(answer, "{\"error\"", 8) == 0) {
    printf("Status: 500 Internal Server Error\nContent-Type: application/json\n\n%s\n", answer ? answer : "null");
    return 0;
  }
  char json[6 * sizeof name + 3];
  if (!skerry_cell(answer, 0, 0, greeting, sizeof greeting)) {
    skerry_json(json, language);
    printf("Status: 404 Not Found\nContent-Type: application/json\n\n{\"error\":\"no greeting\",\"language\":%s}\n", json);
    return 0;
  }
  char message[sizeof greeting + sizeof name], quoted[6 * sizeof message + 3];
  snprintf(message, sizeof message, greeting[0] ? "%s, %s!" : "%s%s!", greeting, name);
  skerry_json(quoted, message);
  skerry_json(json, language);
  printf("Content-Type: application/json\n\n{\"message\":%s,\"language\":%s}\n", quoted, json);
  free(answer);
  return 0;
}
