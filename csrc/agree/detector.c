#include "csrc/agree/detector.h"

void cc__detector_start(cc__detector *detector, int64_t now, int64_t dead_ns, int64_t tick_max_ns) {
    *detector = (cc__detector){dead_ns, tick_max_ns, now, 0};
}

void cc__detector_tick(cc__detector *detector, int64_t now) {
    int64_t gap = now - detector->last_tick_ns;
    if (gap > detector->tick_max_ns) detector->slept_ns += gap - detector->tick_max_ns;
    detector->last_tick_ns = now;
}

void cc__watch_heard(cc__watch *watch, const cc__detector *detector, int64_t now) {
    watch->heard_ns = now - detector->slept_ns;
}

int64_t cc__watch_deadline(const cc__watch *watch, const cc__detector *detector) {
    return watch->heard_ns + detector->slept_ns + detector->dead_ns;
}
