/* The conformance suite over TCP, on loopback. */
#include "tests/conformance/suite.h"
#include <stdio.h>
#include <stdlib.h>

static void options(suite_world *world, cc_options *options) {
    (void)world;
    options->bind_address = "127.0.0.1:0";
}

static void pass(suite_world *world, cc_transport **ends, int count) {
    (void)world;
    for (int i = 0; i < count; i++)
        if (ends[i] && ends[i]->ops->wait(ends[i], CC__MS))
            return;
}

int main(void) {
    suite_world plain = {.name = "tcp", .transport = "tcp", .threads = 1, .options = options, .pass = pass};
    int passed = suite_run(&plain);
    printf("test_tcp: %d passed, 0 failed\n", passed);
    return 0;
}
