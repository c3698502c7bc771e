/* Relays in the simulated world, with two streams as over a network: the near one, which was dialled
 * to be relayed, and the far one, which this endpoint dials. Its ends of both are each other's mate,
 * and poll passes on between them what has arrived, as far as the other stream's window allows. So
 * the delays of both add, a fault of either is one of the whole, and who is paused passes nothing
 * on. The caller of the endpoint never hears of these ends. */
#include "csrc/base/limits.h"
#include "transport/sim_world.h"

#include <stdlib.h>

/* ---- beginning and end ---------------------------------------------------------------------- */

static void part(cc__sim_end *end) {
    end->owner->relays--;
    end->mate->mate = NULL;
    end->mate = NULL;
}

/* Both ends go; what was under way is lost, unless `orderly`. */
static void finish(cc__sim_end *end, int orderly) {
    cc__sim_end *mate = end->mate;
    part(end);
    cc__sim_close_end(end, orderly);
    cc__sim_close_end(mate, orderly);
}

/* The far side did not answer well: the near one is told. */
static void give_up(cc__sim_end *far, cc_status why) {
    cc__sim_end *near = far->mate;
    part(far);
    cc__sim_close_end(far, 0);
    cc__sim_reject(near, why);
}

static cc_status begin(cc__sim_endpoint *endpoint, cc__sim_end *near) {
    const cc_hello *hello = &near->stream->hello;
    const char *address = cc__routes_find(&endpoint->routes, &hello->to);
    cc_stream number;
    if (!address) return CC_UNREACHABLE;
    if (endpoint->relays >= CC_RELAYS_MAX) return CC_BUSY;
    if (cc__sim_dial(endpoint, address, CC__HELLO_DIAL, hello, &number)) return CC_UNREACHABLE;
    cc__sim_end *far = endpoint->slots[(number & 0xffff) - 1];
    near->state = CC__SIM_OPEN; /* for this side; the dialling one still waits for the answer */
    near->deadline_ns = CC__NEVER;
    near->mate = far;
    far->mate = near;
    endpoint->relays++;
    return CC_OK;
}

void cc__sim_relay_begin(cc__sim_endpoint *endpoint, cc__sim_end *near) {
    cc_status status = begin(endpoint, near);
    if (status) cc__sim_reject(near, status);
}

/* ---- passing on ----------------------------------------------------------------------------- */

/* How much of what has arrived here goes out now. As a pending send, a piece is cut only if half of
 * a window is free, or pieces would get ever smaller. */
static size_t passable(const cc__sim_end *end) {
    const cc__sim_piece *piece = end->stream->pipes[1 - end->side].arrived.head;
    if (!piece || end->mate->state != CC__SIM_OPEN) return 0;
    uint32_t window = end->stream->sim->window_bytes;
    uint64_t used = end->mate->stream->pipes[end->mate->side].bytes;
    size_t room = used < window ? window - (size_t)used : 0, left = piece->size - piece->offset;
    if (left <= room) return left;
    return room < window / 2 ? 0 : room;
}

/* Nonzero: something went out. */
static int pass_on(cc__sim_end *end) {
    cc__sim_pipe *in = cc__sim_in(end);
    cc__sim_end *mate = end->mate;
    size_t bytes;
    int moved = 0;
    while ((bytes = passable(end)) > 0) {
        cc__sim_piece *piece = in->arrived.head;
        mate->send[0] = (struct iovec){piece->bytes + piece->offset, bytes};
        mate->send_left = bytes;
        cc__sim_pump(mate); /* whole, for there is room; or to nowhere */
        piece->offset += (uint32_t)bytes;
        in->bytes -= bytes;
        if (piece->offset == piece->size) free(cc__sim_pop(&in->arrived));
        cc__sim_pump(cc__sim_other(end));
        moved = 1;
    }
    return moved;
}

/* The near side has its answer, or its refusal, as soon as the far one has given it. */
static void await_answer(cc__sim_end *far) {
    cc__sim_end *near = far->mate;
    const cc__sim_pipe *in = cc__sim_in(far);
    if (cc__sim_in(near)->ended) {
        finish(far, 0); /* the dial was given up */
    } else if (in->greeted) {
        far->state = CC__SIM_OPEN;
        far->deadline_ns = CC__NEVER;
        cc__sim_answer(near);
    } else if (in->ended) {
        give_up(far, in->why);
    } else if (far->stream->sim->now_ns >= far->deadline_ns) {
        give_up(far, CC_UNREACHABLE);
    }
}

static int has_ended(cc__sim_end *end) {
    return cc__sim_in(end)->ended;
}

void cc__sim_relay(cc__sim_end *end) {
    cc__sim_end *mate = end->mate;
    int64_t now = end->stream->sim->now_ns;
    if (end->state == CC__SIM_DIALING || mate->state == CC__SIM_DIALING) {
        await_answer(end->state == CC__SIM_DIALING ? end : mate);
        return;
    }
    int moved = pass_on(end) | pass_on(mate);
    if (end->state == CC__SIM_DEAD || mate->state == CC__SIM_DEAD)
        finish(end, 0); /* there was no memory */
    else if ((has_ended(end) && !cc__sim_in(end)->arrived.head) ||
             (has_ended(mate) && !cc__sim_in(mate)->arrived.head))
        finish(end, 1);
    else if ((has_ended(end) || has_ended(mate)) && (moved || end->deadline_ns == CC__NEVER))
        end->deadline_ns = mate->deadline_ns = now + end->owner->linger_ns;
    else if (now >= end->deadline_ns)
        finish(end, 0);
}

int64_t cc__sim_relay_next(const cc__sim_end *end) {
    const cc__sim_pipe *in = &end->stream->pipes[1 - end->side];
    int64_t now = end->stream->sim->now_ns, next = cc__sim_pipe_next(in);
    if (end->state == CC__SIM_DEAD || passable(end)) return now;
    if (in->ended && (!in->arrived.head || end->deadline_ns == CC__NEVER)) return now;
    if (end->state == CC__SIM_DIALING && in->greeted) return now;
    return next < end->deadline_ns ? next : end->deadline_ns;
}
