/* The library's own tests: each case, the inputs of a file (a line of hex each), and pseudo-random ones. */
#include <stdlib.h>
#include <string.h>

#include "driver.h"
#include "engine.h"

enum { MOST = 4096 };

void cases_run(void);

static uint64_t state = 0x9E3779B97F4A7C15u;

static uint32_t chance(void) {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return (uint32_t)(state >> 32);
}

static int digit(int letter) { return letter <= '9' ? letter - '0' : letter - 'a' + 10; }

int main(int count, char **arguments) {
    static uint8_t input[MOST];
    CHECK(count == 3);
    cases_run();
    FILE *corpus = fopen(arguments[1], "r");
    CHECK(corpus);
    static char line[2 * MOST + 2];
    unsigned lines = 0, inputs = (unsigned)atoi(arguments[2]);
    while (fgets(line, sizeof line, corpus)) {
        size_t size = strcspn(line, "\n") / 2;
        for (size_t i = 0; i < size; i++) input[i] = (uint8_t)(digit(line[2 * i]) << 4 | digit(line[2 * i + 1]));
        LLVMFuzzerTestOneInput(input, size);
        lines++;
    }
    fclose(corpus);
    for (unsigned i = 0; i < inputs; i++) {
        size_t size = 4 + chance() % (i % 8 ? 400 : MOST - 4);
        for (size_t at = 0; at < size; at++) input[at] = (uint8_t)chance();
        LLVMFuzzerTestOneInput(input, size);
    }
    printf("all cases, %u inputs of the file, %u others: passed\n", lines, inputs);
    return 0;
}
