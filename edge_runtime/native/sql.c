/* What guests import for SQL: a statement is the caller's to run (`Ask`), in the middle of the guest. */
#include <string.h>

#include "parts.h"

/* (request, size) -> bytes of the answer, which `host_result` fetches. A guest that is granted none, or gives a place
   outside its memory, is told so by Python, which runs the call again: nothing was committed yet. */
uint32_t host_sql(Loop *loop, const Value *in, uint32_t *answer) {
    Event *event = loop->event;
    uint32_t size = arg(in, 1);
    const uint8_t *request = guest_bytes(loop, arg(in, 0), size);
    if (!loop->call.function->sql || !request) return stop(loop, STOP_FOREIGN);
    if (!loop->setup.ask(request, size)) return stop(loop, STOP_ASK);
    *answer = event->sql_answer_size;
    return 0;
}

/* (place): writes the answer that is waiting. */
uint32_t host_result(Loop *loop, const Value *in, uint32_t *answer) {
    Event *event = loop->event;
    (void)answer;
    if (!event->sql_answer) return stop(loop, STOP_FOREIGN);
    uint8_t *to = guest_bytes(loop, arg(in, 0), event->sql_answer_size);
    if (!to) return stop(loop, STOP_FOREIGN);
    memcpy(to, event->sql_answer, event->sql_answer_size);
    event->sql_answer = NULL;
    return 0;
}
