/* The conformance suite in the simulated world, where time passes by jumping to the next delivery,
 * and what never answers a hello is a peer that is paused. */
#include "tests/conformance/suite.h"

#include "tests/c/check.h"
#include "transport/sim.h"

typedef struct sim_state {
    cc_sim *sim;
    cc_transport *mute; /* or NULL */
} sim_state;

static void begin(suite_world *world, uint64_t seed) {
    sim_state *state = world->state;
    state->mute = NULL;
    state->sim = cc_sim_open(seed);
    CHECK(state->sim != NULL);
}

static void end(suite_world *world) {
    sim_state *state = world->state;
    if (state->mute) state->mute->ops->stop(state->mute, 1);
    cc_sim_close(state->sim);
}

static void options(suite_world *world, cc_options *options) {
    options->world = ((sim_state *)world->state)->sim;
}

static void pass(suite_world *world, cc_transport **ends, int count) {
    cc_sim *sim = ((sim_state *)world->state)->sim;
    int64_t next = cc_sim_next_ns(sim), most = cc_sim_now_ns(sim) + CC__MS;
    (void)ends;
    (void)count;
    cc_sim_advance(sim, next < most ? next : most);
}

static int mute(suite_world *world, char *address) {
    sim_state *state = world->state;
    cc_options options = {.transport = "sim", .streams = 1, .world = state->sim};
    cc_transport_options open = {.options = &options};
    const cc_transport_ops *ops = cc_transport_find("sim");
    CHECK_EQ(ops->open(&open, &state->mute, NULL), CC_OK);
    ops->address(state->mute, address);
    cc_sim_pause(state->sim, address, 1);
    return 0;
}

int main(void) {
    sim_state state = {NULL, NULL};
    suite_world world = {.name = "sim",
                         .transport = "sim",
                         .state = &state,
                         .begin = begin,
                         .end = end,
                         .options = options,
                         .pass = pass,
                         .mute = mute};
    printf("conformance sim: %d passed, 0 failed\n", suite_run(&world));
    return 0;
}
