/* A shop's orders, as `just demo-data` takes them: POST ?number=N&item=ITEM&cents=N keeps one. */
#include "skerry.h"

int main(void) {
  char number[32], item[64], cents[32], kept[32];
  if (!skerry_parameter("number", number, sizeof number) || !skerry_parameter("item", item, sizeof item) ||
      !skerry_parameter("cents", cents, sizeof cents)) {
    puts("Status: 400 Bad Request\nContent-Type: text/plain\n\nsay ?number=N&item=ITEM&cents=N");
    return 0;
  }
  const char *parameters[] = {number, item, cents};
  char *found =
      skerry_sql("INSERT INTO orders (number, item, cents) VALUES (?, ?, ?) RETURNING number", 3, parameters);
  if (!skerry_cell(found, 0, 0, kept, sizeof kept)) {
    fprintf(stderr, "the order wasn't kept: %s\n", found);
    puts("Status: 500 Internal Server Error\nContent-Type: text/plain\n\nthe order wasn't kept");
    return 0;
  }
  printf("Status: 201 Created\nContent-Type: text/plain\n\n%s\n", kept);
  return 0;
}
