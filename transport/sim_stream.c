/* One simulated stream: its two ends, the bytes between them, and the dial that opens it. What a
 * call of one side does to the other goes through the pipes and takes a latency. */
#include "transport/sim_world.h"

#include <stdlib.h>
#include <string.h>

/* ---- an end of a stream --------------------------------------------------------------------- */

static int is_live(const cc__sim_end *end) {
    return end->state == CC__SIM_WAITING || end->state == CC__SIM_DIALING ||
           end->state == CC__SIM_OPEN;
}

static int slot_take(cc__sim_endpoint *owner, cc__sim_end *end) {
    uint32_t slot = 0;
    while (slot < owner->n_slots && owner->slots[slot]) slot++;
    if (slot == owner->n_slots) {
        uint32_t wanted = owner->n_slots ? 2 * owner->n_slots : 16;
        if (wanted > CC__SIM_STREAMS_MAX) return 0;
        cc__sim_end **slots = realloc(owner->slots, wanted * sizeof(cc__sim_end *));
        if (!slots) return 0;
        for (uint32_t i = owner->n_slots; i < wanted; i++) slots[i] = NULL;
        owner->slots = slots;
        owner->n_slots = wanted;
    }
    owner->slots[slot] = end;
    owner->generation = (owner->generation + 1) & 0xffff;
    end->number = owner->generation << 16 | (slot + 1);
    end->owner = owner;
    return 1;
}

static void slot_give_back(cc__sim_end *end) {
    if (end->number) end->owner->slots[(end->number & 0xffff) - 1] = NULL;
    end->number = 0;
}

void cc__sim_free_stream(cc__sim_stream *stream) {
    cc_sim *sim = stream->sim;
    for (int side = 0; side < 2; side++) {
        slot_give_back(&stream->ends[side]);
        free(stream->ends[side].copy);
        cc__sim_clear(&stream->pipes[side]);
    }
    *(stream->previous ? &stream->previous->next : &sim->streams) = stream->next;
    *(stream->next ? &stream->next->previous : &sim->last_stream) = stream->previous;
    free(stream);
}

/* Lets go of the caller's memory and of all that was meant for this end. */
static void forget(cc__sim_end *end) {
    free(end->copy);
    end->copy = NULL;
    end->send_left = end->recv_left = 0;
    end->sending = end->receiving = 0;
    cc__sim_clear(cc__sim_in(end));
}

/* The end is no more. The stream goes with it when nobody is left to whom it matters: nonzero. */
static int retire(cc__sim_end *end) {
    cc__sim_state other = cc__sim_other(end)->state;
    forget(end);
    slot_give_back(end);
    end->owner = NULL;
    end->state = CC__SIM_GONE;
    if (other != CC__SIM_GONE && other != CC__SIM_LINGERING) return 0;
    cc__sim_free_stream(end->stream);
    return 1;
}

/* Tells the other side that this one is gone. */
static void sever(cc__sim_end *end, cc_status why) {
    cc__sim_end *other = cc__sim_other(end);
    if (other->state == CC__SIM_WAITING)
        retire(other);
    else if (is_live(other))
        cc__sim_reset(end->stream->sim, cc__sim_out(end), why, 0);
}

void cc__sim_die(cc__sim_end *end, cc_status why, int tell) {
    forget(end);
    end->state = CC__SIM_DEAD;
    end->why = why;
    end->events |= 1u << CC_TRANSPORT_CLOSED;
    if (tell) sever(end, CC_CLOSED);
}

int cc__sim_copy(cc__sim_end *end) {
    if (end->copy || end->send_left == 0) return 1;
    end->copy = malloc(end->send_left);
    if (!end->copy) return 0;
    size_t head = end->send[0].iov_len;
    if (head) memcpy(end->copy, end->send[0].iov_base, head);
    if (end->send[1].iov_len) memcpy(end->copy + head, end->send[1].iov_base, end->send[1].iov_len);
    end->send[0] = (struct iovec){end->copy, end->send_left};
    end->send[1] = (struct iovec){NULL, 0};
    return 1;
}

int cc__sim_close_end(cc__sim_end *end, int orderly) {
    cc_sim *sim = end->stream->sim;
    cc__sim_pipe *out = cc__sim_out(end);
    if (orderly && end->state == CC__SIM_OPEN && is_live(cc__sim_other(end)) && !out->shut) {
        if (end->send_left == 0) {
            cc__sim_shut(sim, out, CC_CLOSED);
            return retire(end);
        }
        if (cc__sim_copy(end)) {
            cc__sim_clear(cc__sim_in(end));
            slot_give_back(end);
            end->recv_left = 0;
            end->receiving = 0;
            end->state = CC__SIM_LINGERING;
            end->deadline_ns = sim->now_ns + (end->owner->linger_ns ? end->owner->linger_ns : 1);
            return 0;
        }
    }
    if (is_live(end) || end->state == CC__SIM_LINGERING) sever(end, CC_CLOSED);
    return retire(end);
}

/* Nobody listens there, or not any more. */
static void refuse(cc__sim_stream *stream) {
    stream->refused = 1;
    stream->pipes[1].held = cc__sim_is_held(stream, 1);
    cc__sim_reset(stream->sim, &stream->pipes[1], CC_REFUSED, 0);
}

int cc__sim_abandon(cc__sim_end *end, int orderly) {
    if (end->mate) end->mate = end->mate->mate = NULL; /* it is abandoned in its turn */
    if (end->state == CC__SIM_WAITING) {
        refuse(end->stream);
        return retire(end);
    }
    if (end->state == CC__SIM_LINGERING && orderly) {
        end->owner = NULL;
        return 0;
    }
    int freed = cc__sim_close_end(end, orderly);
    if (!freed) end->owner = NULL;
    return freed;
}

void cc__sim_break_stream(cc__sim_stream *stream) {
    cc_sim *sim = stream->sim;
    for (int side = 0; side < 2; side++)
        if (is_live(&stream->ends[1 - side]))
            cc__sim_reset(sim, &stream->pipes[side], CC_CLOSED, 1);
    for (int side = 0; side < 2; side++) {
        cc__sim_state state = stream->ends[side].state;
        if ((state == CC__SIM_WAITING || state == CC__SIM_LINGERING) && retire(&stream->ends[side]))
            return;
    }
}

int64_t cc__sim_end_next(cc__sim_end *end) {
    const cc__sim_pipe *in = cc__sim_in(end);
    int64_t now = end->stream->sim->now_ns, next = cc__sim_pipe_next(in);
    if (end->state == CC__SIM_GONE) return CC__NEVER;
    if (end->mate) return cc__sim_relay_next(end);
    if (end->state == CC__SIM_LINGERING) return end->deadline_ns;
    if (end->events) return now;
    switch (end->state) {
    case CC__SIM_WAITING: return in->greeted ? now : next;
    case CC__SIM_DIALING:
        if (in->greeted || in->ended) return now;
        return next < end->deadline_ns ? next : end->deadline_ns;
    case CC__SIM_OPEN:
        if (in->arrived.head ? end->receiving : in->ended) return now;
        return in->ended && (end->receiving || end->sending) ? now : next;
    default: return CC__NEVER;
    }
}

/* ---- bytes ---------------------------------------------------------------------------------- */

static void take(cc__sim_end *end, uint8_t *to, size_t bytes) {
    end->send_left -= bytes;
    for (int i = 0; i < 2 && bytes; i++) {
        struct iovec *from = &end->send[i];
        size_t n = from->iov_len < bytes ? from->iov_len : bytes;
        if (n) memcpy(to, from->iov_base, n);
        from->iov_base = (uint8_t *)from->iov_base + n;
        from->iov_len -= n;
        to += n;
        bytes -= n;
    }
}

/* One write: the last of its random pieces arrives after the latency drawn, the others before. */
static int write_pieces(cc__sim_end *end, size_t bytes) {
    cc_sim *sim = end->stream->sim;
    cc__sim_pipe *pipe = cc__sim_out(end);
    uint32_t most = end->owner ? end->owner->io_max_bytes : 0;
    int64_t delay = sim->low_ns, latency = cc__sim_draw(sim, sim->low_ns, sim->high_ns);
    while (bytes) {
        size_t size = (size_t)cc__sim_draw(sim, 1, (int64_t)bytes);
        if (most && size > most) size = most;
        cc__sim_piece *piece = malloc(sizeof(cc__sim_piece) + size);
        if (!piece) return 0;
        delay = size == bytes ? latency : cc__sim_draw(sim, delay, latency);
        int64_t at = sim->now_ns + delay;
        pipe->last_ns = at > pipe->last_ns ? at : pipe->last_ns;
        *piece = (cc__sim_piece){.at_ns = pipe->last_ns, .size = (uint32_t)size};
        take(end, piece->bytes, size);
        if (end->corrupt) piece->bytes[0] ^= 0xff;
        end->corrupt = 0;
        cc__sim_push(&pipe->flight, piece);
        pipe->bytes += size;
        bytes -= size;
        if (end->owner && !end->mate) end->owner->sent_bytes += size;
    }
    cc__sim_settle(sim, pipe);
    return 1;
}

void cc__sim_pump(cc__sim_end *end) {
    cc_sim *sim = end->stream->sim;
    cc__sim_pipe *out = cc__sim_out(end);
    int lingers = end->state == CC__SIM_LINGERING;
    if (end->send_left == 0 || (end->state != CC__SIM_OPEN && !lingers)) return;
    if (out->shut || cc__sim_in(end)->ended || !is_live(cc__sim_other(end))) {
        end->send_left = 0; /* nobody will read it, as after a reset on a real wire */
    } else {
        uint32_t window = sim->window_bytes;
        size_t room = out->bytes < window ? window - out->bytes : 0;
        /* A pending send is refilled by half windows, or its pieces would get ever smaller. */
        if (end->sending && room < end->send_left && room < window / 2) return;
        if (!write_pieces(end, room < end->send_left ? room : end->send_left)) {
            if (lingers)
                cc__sim_close_end(end, 0);
            else
                cc__sim_die(end, CC_SYSTEM, 1);
            return;
        }
    }
    if (end->send_left == 0 && end->sending) {
        end->sending = 0;
        end->events |= 1u << CC_TRANSPORT_SENT;
        free(end->copy);
        end->copy = NULL;
        if (lingers) {
            cc__sim_shut(sim, out, CC_CLOSED);
            retire(end);
        }
    }
}

void cc__sim_consume(cc__sim_end *end) {
    cc__sim_pipe *in = cc__sim_in(end);
    while (end->recv_left && in->arrived.head) {
        cc__sim_piece *piece = in->arrived.head;
        size_t n = piece->size - piece->offset;
        n = n < end->recv_left ? n : end->recv_left;
        if (end->place) {
            memcpy(end->place, piece->bytes + piece->offset, n);
            end->place += n;
        }
        piece->offset += (uint32_t)n;
        end->recv_left -= n;
        end->owner->received_bytes += n;
        in->bytes -= n;
        if (piece->offset == piece->size) free(cc__sim_pop(&in->arrived));
        if (!in->arrived.head || !end->recv_left) cc__sim_pump(cc__sim_other(end));
    }
}

/* ---- dials ---------------------------------------------------------------------------------- */

cc_status cc__sim_dial(cc__sim_endpoint *from, const char *address, cc__hello_role role,
                       const cc_hello *hello, cc_stream *out) {
    cc_sim *sim = from->sim;
    cc__sim_endpoint *to = cc__sim_find(sim, address);
    cc__sim_stream *stream = calloc(1, sizeof *stream);
    if (!stream) return CC_NO_MEMORY;
    stream->sim = sim;
    stream->hello = *hello;
    stream->role = role;
    strcpy(stream->address[0], from->address);
    strcpy(stream->address[1], address);
    for (int side = 0; side < 2; side++) {
        stream->ends[side] = (cc__sim_end){.stream = stream, .side = side};
        stream->pipes[side].hello_ns = CC__NEVER;
    }
    if (!slot_take(from, &stream->ends[0])) {
        free(stream);
        return CC_SYSTEM;
    }
    stream->ends[0].state = CC__SIM_DIALING;
    stream->ends[0].deadline_ns = sim->now_ns + from->connect_ns;
    int there = to && slot_take(to, &stream->ends[1]);
    stream->ends[1].state = there ? CC__SIM_WAITING : CC__SIM_GONE;
    stream->previous = sim->last_stream;
    *(sim->last_stream ? &sim->last_stream->next : &sim->streams) = stream;
    sim->last_stream = stream;
    for (int side = 0; side < 2; side++) stream->pipes[side].held = cc__sim_is_held(stream, side);
    *out = stream->ends[0].number;
    if (there) {
        stream->pipes[0].hello_ns = cc__sim_arrival(sim, &stream->pipes[0]);
        cc__sim_settle(sim, &stream->pipes[0]);
    } else {
        refuse(stream);
    }
    return CC_OK;
}

void cc__sim_answer(cc__sim_end *end) {
    cc_sim *sim = end->stream->sim;
    cc__sim_out(end)->hello_ns = cc__sim_arrival(sim, cc__sim_out(end));
    cc__sim_settle(sim, cc__sim_out(end));
}

void cc__sim_reject(cc__sim_end *end, cc_status why) {
    sever(end, why);
    retire(end);
}
