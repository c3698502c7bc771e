/* The inside of the simulated world: what sim.c (the vtable of one endpoint), sim_stream.c (the
 * streams), sim_relay.c (those that are passed on) and sim_world.c (time, chance, the wires and
 * their faults) share. Nobody else includes it.
 *
 * A stream has two ends and two pipes; pipe d carries what end d writes. Everything under way in a
 * pipe has a time of arrival. Whenever time moves or a pipe changes, what is due is settled at
 * once, so between two calls `flight` holds only what has not arrived. */
#ifndef CC_SIM_WORLD_H
#define CC_SIM_WORLD_H

#include "transport/handshake.h"
#include "transport/route.h"
#include "transport/sim.h"

extern const cc_transport_ops cc__transport_sim;

#define CC__SIM_STREAMS_MAX 16384u /* of one endpoint; a number's low 16 bits are its slot + 1 */

typedef struct cc__sim_piece {
    struct cc__sim_piece *next;
    int64_t at_ns;
    uint32_t size, offset; /* offset: how much of it was read */
    uint8_t bytes[];
} cc__sim_piece;

typedef struct cc__sim_queue {
    cc__sim_piece *head, *tail;
} cc__sim_queue;

typedef struct cc__sim_pipe {
    cc__sim_queue flight, arrived;
    uint64_t bytes;   /* in both queues: what the window bounds */
    int64_t last_ns;  /* nothing arrives before what was written earlier */
    int64_t hello_ns; /* the hello, or the answer to it, arrives; CC__NEVER: none under way */
    int greeted;      /* it has arrived */
    int shut;         /* an end is under way or has arrived: what is written now is lost */
    int64_t end_ns;
    cc_status why; /* the end's reason */
    int certain;   /* no hold stops this end: the wire itself broke */
    int ended;     /* it has arrived */
    int held;      /* by a cut or a pause: nothing arrives */
    int corrupts;  /* the first byte of the next send */
} cc__sim_pipe;

typedef enum cc__sim_state {
    CC__SIM_WAITING = 1, /* a dial is on its way here; the owner does not know of it yet */
    CC__SIM_DIALING,
    CC__SIM_OPEN,
    CC__SIM_DEAD,      /* CLOSED was or will be yielded; the owner has not called close yet */
    CC__SIM_LINGERING, /* the owner closed it; what it sent is still being delivered */
    CC__SIM_GONE,
} cc__sim_state;

typedef struct cc__sim_endpoint cc__sim_endpoint;
typedef struct cc__sim_stream cc__sim_stream;

typedef struct cc__sim_end cc__sim_end;

struct cc__sim_end {
    cc__sim_stream *stream;
    int side;
    cc__sim_endpoint *owner; /* NULL: it has gone */
    cc__sim_state state;
    cc_stream number;    /* 0: not in the owner's table */
    int64_t deadline_ns; /* DIALING: it times out; LINGERING: what is left is dropped; a relay's:
                            so does what was not passed on */
    cc__sim_end *mate;   /* of a relay: the end that what arrives here goes out at; or NULL */
    unsigned events;     /* not yielded yet: bits 1 << cc_transport_event_kind */
    cc_status why;       /* of CLOSED */
    struct iovec send[2];
    size_t send_left;
    int sending;    /* a send is pending */
    int corrupt;    /* its first byte, which has yet to go, is turned */
    uint8_t *copy;  /* what is left of a released send, or NULL */
    uint8_t *place; /* of the pending recv; NULL: scrap */
    size_t recv_left;
    int receiving;
};

struct cc__sim_stream {
    cc__sim_stream *next, *previous; /* in the order of the dials */
    cc_sim *sim;
    cc_hello hello;
    cc__hello_role role; /* of the hello */
    char address[2][CC_ADDRESS_MAX];
    int refused; /* nobody listens there */
    cc__sim_end ends[2];
    cc__sim_pipe pipes[2];
};

struct cc__sim_endpoint {
    cc_transport transport;
    cc__sim_endpoint *next; /* in the order of opening */
    cc_sim *sim;
    char address[CC_ADDRESS_MAX];
    cc_peer_id id;
    uint8_t token[16];
    int has_token;
    uint32_t streams, segment_bytes, io_max_bytes;
    int64_t connect_ns, linger_ns;
    int killed, paused, woken;
    cc__routes routes;
    uint32_t relays;
    cc__sim_end **slots;
    uint32_t n_slots, cursor;
    uint32_t generation;
    uint64_t sent_bytes, received_bytes, bad_connections;
    uint64_t sent_frames, frames_max; /* beyond frames_max they are lost */
    int64_t offset_ns;                /* of its clock, and how fast that is */
    int32_t fast_ppm;
};

typedef struct cc__sim_cut {
    char from[CC_ADDRESS_MAX], to[CC_ADDRESS_MAX];
} cc__sim_cut;

struct cc_sim {
    /* Of all endpoints. The registry names it weakly; that a world needs it is what makes a linker
     * take sim.c out of an archive. */
    const cc_transport_ops *ops;
    int64_t now_ns;
    uint64_t random;
    int64_t low_ns, high_ns;
    uint32_t window_bytes;
    uint64_t bytes_per_s;
    int64_t offset_ns; /* of the clocks of endpoints opened from now on */
    int32_t fast_ppm;
    uint32_t opened; /* endpoints so far */
    cc__sim_endpoint *endpoints;
    cc__sim_stream *streams, *last_stream;
    cc__sim_cut *cuts;
    size_t n_cuts, room_cuts;
};

static inline cc__sim_end *cc__sim_other(cc__sim_end *end) {
    return &end->stream->ends[1 - end->side];
}

static inline cc__sim_pipe *cc__sim_out(cc__sim_end *end) {
    return &end->stream->pipes[end->side];
}

static inline cc__sim_pipe *cc__sim_in(cc__sim_end *end) {
    return &end->stream->pipes[1 - end->side];
}

/* ---- sim_world.c ---------------------------------------------------------------------------- */

/* Uniform in low .. high. */
int64_t cc__sim_draw(cc_sim *sim, int64_t low, int64_t high);
/* When what is sent now arrives at the far end, never before what was sent earlier. */
int64_t cc__sim_arrival(cc_sim *sim, cc__sim_pipe *pipe);

void cc__sim_push(cc__sim_queue *queue, cc__sim_piece *piece);
cc__sim_piece *cc__sim_pop(cc__sim_queue *queue);
void cc__sim_clear(cc__sim_pipe *pipe);

/* Lets arrive what is due. */
void cc__sim_settle(const cc_sim *sim, cc__sim_pipe *pipe);
int64_t cc__sim_pipe_next(const cc__sim_pipe *pipe); /* the next arrival, or CC__NEVER */
/* Sends the end of the stream behind everything else. */
void cc__sim_shut(cc_sim *sim, cc__sim_pipe *pipe, cc_status why);
/* Loses what is under way and ends the stream; what has arrived can still be read. */
void cc__sim_reset(cc_sim *sim, cc__sim_pipe *pipe, cc_status why, int certain);
/* Whether a fault holds back what end `side` writes. */
int cc__sim_is_held(const cc__sim_stream *stream, int side);

/* A time of the world as the endpoint's clock shows it. */
int64_t cc__sim_local(const cc__sim_endpoint *endpoint, int64_t ns);

/* A live endpoint with that address, or NULL. */
cc__sim_endpoint *cc__sim_find(cc_sim *sim, const char *address);

/* Takes the endpoint's streams out of the world (orderly: what was sent is delivered); dials to it
 * are refused. The caller unlinks and frees it. */
void cc__sim_leave(cc__sim_endpoint *endpoint, int orderly);

/* ---- sim_stream.c --------------------------------------------------------------------------- */

/* A dial's hello, its answer (the owner opens the end), and the other answer. */
cc_status cc__sim_dial(cc__sim_endpoint *from, const char *address, cc__hello_role role,
                       const cc_hello *hello, cc_stream *out);
void cc__sim_answer(cc__sim_end *end);
void cc__sim_reject(cc__sim_end *end, cc_status why);

/* Moves what the window allows of the pending send into the pipe. */
void cc__sim_pump(cc__sim_end *end);

/* Moves what has arrived to the place of the pending recv, and lets the writer refill. */
void cc__sim_consume(cc__sim_end *end);

/* Copies what is left of the pending send. 0: no memory. */
int cc__sim_copy(cc__sim_end *end);

/* The stream is dead for this end, CLOSED follows; `tell`: the other side learns of it. */
void cc__sim_die(cc__sim_end *end, cc_status why, int tell);

/* The owner's close. Nonzero: the stream is freed, for nobody else has a part in it. */
int cc__sim_close_end(cc__sim_end *end, int orderly);

/* The owner goes. As close, but a dial that is on its way to it is refused. */
int cc__sim_abandon(cc__sim_end *end, int orderly);

/* The wire breaks: both sides hear of it, whatever else is cut or paused. */
void cc__sim_break_stream(cc__sim_stream *stream);

/* When poll of the owner has something to do with this end, or CC__NEVER. */
int64_t cc__sim_end_next(cc__sim_end *end);

void cc__sim_free_stream(cc__sim_stream *stream);

/* ---- sim_relay.c ---------------------------------------------------------------------------- */

/* Passes on a dial whose hello was judged, or turns it away. */
void cc__sim_relay_begin(cc__sim_endpoint *endpoint, cc__sim_end *near);

/* Does for an end of a relay what has come due. Both ends may be gone afterwards. */
void cc__sim_relay(cc__sim_end *end);

/* When that has something to do, or CC__NEVER. */
int64_t cc__sim_relay_next(const cc__sim_end *end);

#endif
