/* The world that simulated peers live in: its clock, its dice, the wires between endpoints and what
 * can go wrong with them. The endpoints' side of it is sim.c.
 *
 * Nothing happens by itself: time moves in cc_sim_advance, bytes in the calls of the endpoints.
 * Every choice comes from one splitmix64 sequence, and every loop runs in the order of opening or
 * of dialling, so that a run is a function of the seed and of the calls. Only payload is allocated
 * on the way; greetings and ends of streams cannot fail for want of memory. */
#include "transport/sim_world.h"

#include <stdlib.h>
#include <string.h>

/* ---- chance --------------------------------------------------------------------------------- */

static uint64_t draw(cc_sim *sim) {
    uint64_t z = (sim->random += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* Uniform in low .. high; the modulo's bias is far below what a test could see. */
int64_t cc__sim_draw(cc_sim *sim, int64_t low, int64_t high) {
    return low + (int64_t)(draw(sim) % ((uint64_t)(high - low) + 1));
}

/* When what is sent now arrives at the far end of the pipe, never before what was sent earlier. */
int64_t cc__sim_arrival(cc_sim *sim, cc__sim_pipe *pipe) {
    int64_t at = sim->now_ns + cc__sim_draw(sim, sim->low_ns, sim->high_ns);
    pipe->last_ns = at > pipe->last_ns ? at : pipe->last_ns;
    return pipe->last_ns;
}

/* ---- one direction of a stream -------------------------------------------------------------- */

void cc__sim_push(cc__sim_queue *queue, cc__sim_piece *piece) {
    piece->next = NULL;
    if (queue->tail)
        queue->tail->next = piece;
    else
        queue->head = piece;
    queue->tail = piece;
}

cc__sim_piece *cc__sim_pop(cc__sim_queue *queue) {
    cc__sim_piece *piece = queue->head;
    queue->head = piece->next;
    if (!queue->head) queue->tail = NULL;
    return piece;
}

static void queue_clear(cc__sim_pipe *pipe, cc__sim_queue *queue) {
    while (queue->head) {
        cc__sim_piece *piece = cc__sim_pop(queue);
        pipe->bytes -= piece->size - piece->offset;
        free(piece);
    }
}

void cc__sim_clear(cc__sim_pipe *pipe) {
    queue_clear(pipe, &pipe->flight);
    queue_clear(pipe, &pipe->arrived);
}

void cc__sim_settle(const cc_sim *sim, cc__sim_pipe *pipe) {
    if (!pipe->held && pipe->hello_ns <= sim->now_ns) {
        pipe->hello_ns = CC__NEVER;
        pipe->greeted = 1;
    }
    while (!pipe->held && pipe->flight.head && pipe->flight.head->at_ns <= sim->now_ns)
        cc__sim_push(&pipe->arrived, cc__sim_pop(&pipe->flight));
    if (pipe->shut && !pipe->flight.head && pipe->end_ns <= sim->now_ns &&
        (!pipe->held || pipe->certain))
        pipe->ended = 1;
}

int64_t cc__sim_pipe_next(const cc__sim_pipe *pipe) {
    if (pipe->ended) return CC__NEVER;
    if (pipe->held) return pipe->shut && pipe->certain ? pipe->end_ns : CC__NEVER;
    if (pipe->hello_ns != CC__NEVER) return pipe->hello_ns;
    if (pipe->flight.head) return pipe->flight.head->at_ns;
    return pipe->shut ? pipe->end_ns : CC__NEVER;
}

/* Sends the end of the stream behind everything else. */
void cc__sim_shut(cc_sim *sim, cc__sim_pipe *pipe, cc_status why) {
    pipe->shut = 1;
    pipe->why = why;
    pipe->end_ns = cc__sim_arrival(sim, pipe);
    cc__sim_settle(sim, pipe);
}

/* Loses what is under way; what has arrived can still be read. */
void cc__sim_reset(cc_sim *sim, cc__sim_pipe *pipe, cc_status why, int certain) {
    if (pipe->ended || pipe->certain) return;
    queue_clear(pipe, &pipe->flight);
    pipe->hello_ns = CC__NEVER;
    pipe->last_ns = sim->now_ns;
    pipe->certain = certain;
    cc__sim_shut(sim, pipe, why);
}

/* What was held back sets out again, so it takes a latency from now. */
static void pipe_resume(cc_sim *sim, cc__sim_pipe *pipe) {
    int64_t at = sim->now_ns + cc__sim_draw(sim, sim->low_ns, sim->high_ns);
    if (pipe->hello_ns < at) pipe->hello_ns = at;
    for (cc__sim_piece *piece = pipe->flight.head; piece; piece = piece->next)
        piece->at_ns = piece->at_ns > at ? piece->at_ns : at;
    if (pipe->shut && !pipe->certain && pipe->end_ns < at) pipe->end_ns = at;
    pipe->last_ns = pipe->last_ns > at ? pipe->last_ns : at;
    cc__sim_settle(sim, pipe);
}

static int is_cut(const cc_sim *sim, const char *from, const char *to) {
    for (size_t i = 0; i < sim->n_cuts; i++)
        if (strcmp(sim->cuts[i].from, from) == 0 && strcmp(sim->cuts[i].to, to) == 0) return 1;
    return 0;
}

int cc__sim_is_held(const cc__sim_stream *stream, int side) {
    const cc__sim_endpoint *a = stream->ends[side].owner, *b = stream->ends[1 - side].owner;
    const char *from = stream->address[side], *to = stream->address[1 - side];
    if ((a && a->paused) || (b && b->paused) || is_cut(stream->sim, from, to)) return 1;
    /* A refusal is the answer to a dial: it comes only if the dial could get there. */
    return stream->refused && is_cut(stream->sim, to, from);
}

static void update_holds(cc_sim *sim) {
    for (cc__sim_stream *stream = sim->streams; stream; stream = stream->next) {
        for (int side = 0; side < 2; side++) {
            cc__sim_pipe *pipe = &stream->pipes[side];
            int held = cc__sim_is_held(stream, side), resumes = pipe->held && !held;
            pipe->held = held;
            if (resumes) pipe_resume(sim, pipe);
        }
    }
}

/* ---- the world ------------------------------------------------------------------------------ */

cc__sim_endpoint *cc__sim_find(cc_sim *sim, const char *address) {
    for (cc__sim_endpoint *endpoint = sim->endpoints; endpoint; endpoint = endpoint->next)
        if (!endpoint->killed && strcmp(endpoint->address, address) == 0) return endpoint;
    return NULL;
}

void cc__sim_leave(cc__sim_endpoint *endpoint, int orderly) {
    cc_sim *sim = endpoint->sim;
    endpoint->killed = 1;
    if (endpoint->paused) {
        endpoint->paused = 0;
        update_holds(sim);
    }
    for (cc__sim_stream *stream = sim->streams, *next; stream; stream = next) {
        int freed = 0;
        next = stream->next;
        for (int side = 0; side < 2 && !freed; side++)
            if (stream->ends[side].owner == endpoint)
                freed = cc__sim_abandon(&stream->ends[side], orderly);
    }
}

cc_sim *cc_sim_open(uint64_t seed) {
    cc_sim *sim = calloc(1, sizeof *sim);
    if (!sim) return NULL;
    sim->ops = &cc__transport_sim;
    sim->random = seed;
    sim->low_ns = 1000;
    sim->high_ns = 50000;
    sim->window_bytes = 65536;
    sim->bytes_per_s = UINT64_C(10000000000);
    return sim;
}

void cc_sim_close(cc_sim *sim) {
    if (!sim) return;
    while (sim->streams) cc__sim_free_stream(sim->streams);
    free(sim->cuts);
    free(sim);
}

int64_t cc_sim_now_ns(const cc_sim *sim) {
    return sim->now_ns;
}

void cc_sim_advance(cc_sim *sim, int64_t to_ns) {
    if (to_ns <= sim->now_ns) return;
    sim->now_ns = to_ns;
    for (cc__sim_stream *stream = sim->streams, *next; stream; stream = next) {
        int freed = 0;
        next = stream->next;
        for (int side = 0; side < 2; side++) cc__sim_settle(sim, &stream->pipes[side]);
        for (int side = 0; side < 2 && !freed; side++) {
            cc__sim_end *end = &stream->ends[side];
            if (end->state == CC__SIM_LINGERING && end->deadline_ns <= to_ns)
                freed = cc__sim_close_end(end, 0);
        }
    }
}

int64_t cc_sim_next_ns(const cc_sim *sim) {
    int64_t next = CC__NEVER;
    for (cc__sim_stream *stream = sim->streams; stream; stream = stream->next) {
        for (int side = 0; side < 2; side++) {
            cc__sim_end *end = &stream->ends[side];
            int64_t at = cc__sim_end_next(end);
            at = at > sim->now_ns ? at : sim->now_ns;
            /* Who drives the world may leave a paused peer alone; that must not stop time. */
            if (at == sim->now_ns && end->owner && end->owner->paused) continue;
            next = at < next ? at : next;
        }
    }
    return next;
}

void cc_sim_set_latency(cc_sim *sim, int64_t low_ns, int64_t high_ns) {
    sim->low_ns = low_ns > 0 ? low_ns : 0;
    sim->high_ns = high_ns > sim->low_ns ? high_ns : sim->low_ns;
}

void cc_sim_set_bandwidth(cc_sim *sim, uint64_t bytes_per_s) {
    sim->bytes_per_s = bytes_per_s;
}

void cc_sim_set_clock(cc_sim *sim, int64_t offset_ns, int32_t fast_ppm) {
    sim->offset_ns = offset_ns;
    sim->fast_ppm = fast_ppm;
}

int64_t cc__sim_local(const cc__sim_endpoint *endpoint, int64_t ns) {
    if (ns == CC__NEVER) return ns;
    return endpoint->offset_ns + ns + ns / 1000000 * endpoint->fast_ppm +
           ns % 1000000 * endpoint->fast_ppm / 1000000;
}

uint64_t cc_sim_sent(cc_sim *sim, const char *address) {
    const cc__sim_endpoint *endpoint = cc__sim_find(sim, address);
    return endpoint ? endpoint->sent_frames : 0;
}

void cc_sim_set_window(cc_sim *sim, uint32_t bytes) {
    sim->window_bytes = bytes ? bytes : 1;
    for (cc__sim_stream *stream = sim->streams, *next; stream; stream = next) {
        next = stream->next;
        for (int side = 0; side < 2; side++)
            if (stream->ends[side].sending) cc__sim_pump(&stream->ends[side]);
    }
}

/* ---- faults --------------------------------------------------------------------------------- */

void cc_sim_kill(cc_sim *sim, const char *address) {
    cc__sim_endpoint *endpoint = cc__sim_find(sim, address);
    if (endpoint) cc__sim_leave(endpoint, 0);
}

void cc_sim_mute(cc_sim *sim, const char *address, uint64_t frames) {
    cc__sim_endpoint *endpoint = cc__sim_find(sim, address);
    if (endpoint) endpoint->frames_max = frames;
}

void cc_sim_pause(cc_sim *sim, const char *address, int paused) {
    cc__sim_endpoint *endpoint = cc__sim_find(sim, address);
    if (endpoint) endpoint->paused = paused != 0;
    update_holds(sim);
}

void cc_sim_cut(cc_sim *sim, const char *from, const char *to, int cut) {
    size_t i = 0;
    while (i < sim->n_cuts &&
           (strcmp(sim->cuts[i].from, from) != 0 || strcmp(sim->cuts[i].to, to) != 0))
        i++;
    if (i < sim->n_cuts && !cut) {
        sim->cuts[i] = sim->cuts[--sim->n_cuts];
    } else if (i == sim->n_cuts && cut) {
        if (strlen(from) >= CC_ADDRESS_MAX || strlen(to) >= CC_ADDRESS_MAX)
            return; /* no endpoint has such an address */
        cc__sim_cut *cuts = realloc(sim->cuts, (sim->n_cuts + 1) * sizeof *cuts);
        if (!cuts) return; /* the fault does not happen; there is no one to tell */
        sim->cuts = cuts;
        strcpy(cuts[sim->n_cuts].from, from);
        strcpy(cuts[sim->n_cuts++].to, to);
    }
    update_holds(sim);
}

void cc_sim_break(cc_sim *sim, const char *a, const char *b) {
    for (cc__sim_stream *stream = sim->streams, *next; stream; stream = next) {
        const char *from = stream->address[0], *to = stream->address[1];
        next = stream->next;
        if ((strcmp(from, a) == 0 && strcmp(to, b) == 0) ||
            (strcmp(from, b) == 0 && strcmp(to, a) == 0))
            cc__sim_break_stream(stream);
    }
}

void cc_sim_corrupt(cc_sim *sim, const char *from, const char *to) {
    for (cc__sim_stream *stream = sim->streams; stream; stream = stream->next)
        for (int side = 0; side < 2; side++)
            if (strcmp(stream->address[side], from) == 0 &&
                strcmp(stream->address[1 - side], to) == 0)
                stream->pipes[side].corrupts = 1;
}
