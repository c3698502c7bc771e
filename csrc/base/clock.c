#include "csrc/base/clock.h"

#include <time.h>

static int64_t monotonic_now(void *arg) {
    (void)arg;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000LL + now.tv_nsec;
}

cc__clock cc__clock_monotonic(void) {
    return (cc__clock){monotonic_now, 0};
}
