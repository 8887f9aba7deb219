/* One call of a guest, in a fresh instance. */
#include <string.h>

#include "parts.h"

typedef uint32_t (*Instantiate)(void *, void **, void *, const void *);
typedef void (*Delete)(void *);
typedef const void *(*Find)(const void *, Name);

static const Name START = {6, "_start"}, INITIALIZE = {11, "_initialize"};
static const Name ALLOCATE = {12, "skerry_alloc"}, HANDLE = {13, "skerry_handle"};

static Value number(const Engine *engine, uint64_t value, bool wide) {
    Value made = {.value = {value, 0}};
    memcpy(made.type, wide ? engine->type_i64 : engine->type_i32, sizeof made.type);
    return made;
}

/* Calls an exported function of the instance. Returns WasmEdge's result, 0 where it has returned. */
static uint32_t invoke(const Loop *loop, const void *instance, Name name, const Value *in, uint32_t count, Value *out) {
    const Engine *engine = &loop->setup.engine;
    const void *function = ((Find)engine->find_function)(instance, name);
    return ((Invoke)engine->invoke)(loop->call.function->executor, function, in, count, out, out != NULL);
}

/* Puts the request where the guest wants it, and has it answered. */
static Ending call_direct(Loop *loop, const void *instance, Answer *answer) {
    Call *call = &loop->call;
    Event *event = loop->event;
    const Engine *engine = &loop->setup.engine;
    Bytes head = call->head->block, body = call->body;
    uint32_t size = head.size + body.size;
    Value in[2] = {number(engine, size, false)}, out = number(engine, 0, false);
    event->result = invoke(loop, instance, ALLOCATE, in, 1, &out);
    if (event->result) return FAILED;
    uint32_t address = (uint32_t)out.value[0];
    event->address = address;
    event->length = size;
    uint8_t *room = address ? guest_bytes(loop, address, size) : NULL;
    if (!room) {
        call->stop = STOP_ROOM;
        return FAILED;
    }
    memcpy(room, head.at, head.size);
    if (body.size) memcpy(room + head.size, body.at, body.size);
    in[0] = number(engine, address, false);
    in[1] = number(engine, size, false);
    out = number(engine, 0, true);
    event->result = invoke(loop, instance, HANDLE, in, 2, &out);
    if (event->result) return FAILED;
    event->address = (uint32_t)(out.value[0] >> 32);
    event->length = (uint32_t)out.value[0];
    return answer_direct(loop, event->address, event->length, answer);
}

/* Whether a program has ended itself well, which it may do anywhere. */
static bool ended_well(const Call *call) {
    return call->function->wagi && call->stop == STOP_EXIT && !call->exit_code;
}

static Ending call_wagi(Loop *loop, const void *instance, Answer *answer) {
    loop->event->result = invoke(loop, instance, START, NULL, 0, NULL);
    if (loop->event->result && !ended_well(&loop->call)) return FAILED;
    loop->event->result = 0;
    loop->call.stop = STOP_NONE;
    return answer_wagi(loop, answer);
}

/* Runs the call that `loop->call` is set up for. The instance has ended when this returns, and its memory isn't cleared:
   an answer may lie there. */
Ending guest_call(Loop *loop, Answer *answer) {
    const Engine *engine = &loop->setup.engine;
    Function *function = loop->call.function;
    void *instance = NULL;
    Ending ending = FAILED;
    loop->running = true;
    loop->event->result =
        ((Instantiate)engine->instantiate)(function->executor, &instance, function->store, function->module);
    if (loop->event->result || !instance) {
        /* The store keeps an instance that failed, which refers to the memory: both must be made anew. */
        function->ready = 0;
        loop->event->uninstantiated = 1;
        instance = NULL;
    } else {
        if (function->initializes) loop->event->result = invoke(loop, instance, INITIALIZE, NULL, 0, NULL);
        if (!loop->event->result)
            ending = function->wagi ? call_wagi(loop, instance, answer) : call_direct(loop, instance, answer);
    }
    /* It ended before its entry point was called: Python runs it, and has its answer. */
    if (ending == FAILED && ended_well(&loop->call)) ending = FOREIGN;
    loop->running = false;
    loop->event->pages = memory_pages(function, engine);
    if (instance) ((Delete)engine->delete_instance)(instance);
    return loop->call.stop == STOP_FOREIGN ? FOREIGN : ending;
}
