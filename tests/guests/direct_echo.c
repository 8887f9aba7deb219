/* Answers with the request's body, by the ABI `direct`. */
#include "skerry_direct.h"

skerry_answer skerry_main(const skerry_request *request) {
  return skerry_respond(200, "Content-Type: application/octet-stream\r\n", request->body, request->body_size);
}
