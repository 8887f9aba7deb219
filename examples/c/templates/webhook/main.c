/* Keeps events that are signed as https://www.standardwebhooks.com says. An event that comes again, from its sender or
 * from somebody who has seen it, is kept once, by its signed id: so there is no need to refuse one for its time. */
#include "hmac.h"
#include "skerry.h"

static void answer(const char *status, const char *json) {
  printf("Status: %s\nContent-Type: application/json\n\n%s\n", status, json);
}

/* Whether one of the signatures in the header is the message's. */
static bool is_signed(const char *id, const char *time, const char *body, size_t size) {
  const char *secret = getenv("WEBHOOK_SECRET"), *at = getenv("HTTP_WEBHOOK_SIGNATURE");
  if (!id || !time || !at) return false;
  unsigned char key[64], right[32], given[32];
  size_t key_size = base64_decode(strncmp(secret, "whsec_", 6) == 0 ? secret + 6 : secret, key, sizeof key);
  size_t head = strlen(id) + strlen(time) + 2;
  char *message = malloc(head + size + 1);
  /* A secret has 24 to 64 bytes: anybody could guess a short one. */
  if (!message || key_size < 24) return false;
  snprintf(message, head + 1, "%s.%s.", id, time);
  memcpy(message + head, body, size);
  hmac_sha256(key, key_size, message, head + size, right);
  for (; *at; at += strcspn(at, " "), at += strspn(at, " ")) {
    if (strncmp(at, "v1,", 3) != 0 || base64_decode(at + 3, given, sizeof given) != sizeof right) continue;
    /* All bytes are compared: a time that depends on where they differ would tell how to go on. */
    unsigned char different = 0;
    for (size_t i = 0; i < sizeof right; i++) different |= given[i] ^ right[i];
    if (!different) return true;
  }
  return false;
}

int main(void) {
  if (strcmp(getenv("REQUEST_METHOD"), "POST") != 0) {
    printf("Allow: POST\n");
    answer("405 Method Not Allowed", "{\"error\":\"only POST\"}");
    return 0;
  }
  const char *id = getenv("HTTP_WEBHOOK_ID");
  size_t size;
  char *body = skerry_body(&size);
  if (!body) return 1;
  if (!is_signed(id, getenv("HTTP_WEBHOOK_TIMESTAMP"), body, size)) {
    answer("401 Unauthorized", "{\"error\":\"the signature isn't right\"}");
    return 0;
  }
  const char *statement = "INSERT INTO notes (id, body) VALUES (?, ?) ON CONFLICT DO NOTHING RETURNING id";
  const char *parameters[] = {id, body};
  char *found = skerry_sql(statement, 2, parameters);
  if (!found || strncmp(found, "{\"error\"", 8) == 0) {
    /* What goes to stderr is the node's log. A status other than 0 becomes a 502, and the sender sends it again. */
    fprintf(stderr, "the event isn't kept: %s\n", found ? found : "out of memory");
    return 1;
  }
  answer("200 OK", skerry_find(found, 0, 0) ? "{\"stored\":true}" : "{\"stored\":false}");
  return 0;
}
