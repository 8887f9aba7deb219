#ifndef SKERRY_TEST_DRIVER_H
#define SKERRY_TEST_DRIVER_H

#include <stddef.h>
#include <stdint.h>

/* Runs one input; libFuzzer calls it by this name. */
int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

#endif
