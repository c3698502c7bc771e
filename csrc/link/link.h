/* Links to other peers: dialling, framing, heartbeats. A link is stream 0 for control and eager
 * data and K bulk streams for segments. It knows frames, not what they mean for an operation.
 *
 * All calls are made under the context's lock. Nothing blocks. Nothing calls up: the caller feeds
 * transport events in with cc__links_feed and takes out what they mean with cc__links_next, until
 * that returns false. */
#ifndef CC_LINK_H
#define CC_LINK_H

#include "csrc/agree/detector.h"
#include "csrc/base/limits.h"
#include "csrc/base/trace.h"
#include "csrc/link/session.h"
#include "transport/transport.h"

#include <stdbool.h>
#include <string.h>

typedef struct cc__link cc__link;

typedef enum cc__link_state {
    CC__LINK_IDLE = 0, /* known, not connected */
    CC__LINK_DIALING,  /* some of its streams are there or on their way */
    CC__LINK_UP,
    CC__LINK_BROKEN, /* could not be made, or was lost with its session */
} cc__link_state;

/* One stream of a link, and the frame that is under way on it in either direction. */
typedef struct cc__channel {
    cc__link *link;
    uint32_t index;   /* 0: control */
    cc_stream stream; /* CC_STREAM_NONE: none */
    bool open;        /* the handshake is over */
    uint8_t phase;    /* of receiving: see link.c */
    uint32_t counted; /* bytes of the frame that is being received, in the session */
    uint8_t in_header[CC_HEADER_BYTES];
    cc__frame frame; /* the last one received; its payload is at `place` */
    void *place;
    void *in_owner;   /* whose memory `place` is; NULL: this channel's scratch */
    uint8_t *scratch; /* room for the longest payload */
    bool sending;
    uint8_t out_header[CC_HEADER_BYTES];
    void *out_owner;    /* whose memory is being sent; NULL: the transport's copy */
    uint32_t out_move;  /* for the owner: which move, */
    uint32_t out_bytes; /* and how many bytes of it */
    struct cc__channel *hash_next, *resume_next;
    bool resuming;
} cc__channel;

/* What a peer said of one group, kept for when this peer has come to the same epoch. */
typedef struct cc__news {
    uint32_t group;
    uint64_t installed; /* the highest epoch it has installed */
    uint64_t aborted;   /* the highest it has sealed, and why: */
    cc__abort_payload abort;
    bool goodbye; /* it closed the group */
} cc__news;

struct cc__link {
    cc_peer_id id;
    char address[CC_ADDRESS_MAX]; /* "" until known */
    cc__link_state state;
    bool dials;   /* this side opens the streams */
    bool wanted;  /* some group or rehearsal needs it: it is watched */
    bool goodbye; /* the peer said that it closes */
    bool accused; /* its silence was told since it was last wanted */
    uint64_t nonce;
    uint32_t open_streams;
    cc__channel channels[CC_STREAMS_MAX + 1];
    uint32_t next_bulk;   /* where the search for an idle bulk stream starts */
    cc_stream probe;      /* asks whether the peer still listens, */
    cc_peer_id probe_via; /* through another one, or 0 */
    uint32_t n_asked;     /* others that were asked about it since it fell silent */
    int64_t ask_ns;       /* when to ask the next */
    int64_t unheard_ns;   /* the peer seems not to hear this one: it is believed then */
    bool relayed;         /* its streams go through another peer */
    int64_t direct_ns;    /* when to try the direct way again */
    int64_t probe_ns;     /* when to ask again; CC__NEVER: not */
    int64_t up_ns;        /* when it last came up */
    int64_t broken_ns;    /* since when it is not up, but for a moment */
    int64_t fading_ns; /* UP, but a bulk stream has ended: when it counts as broken; or CC__NEVER */
    cc__session session;
    bool greeted; /* on this connection, the peer said what it knows of a session: */
    uint64_t their_session, their_received;
    bool holding; /* bulk data waits until the peer has said what it is missing */
    cc__watch watch;
    int64_t since_ns; /* when it was last wanted */
    int64_t sent_ns;  /* when anything was last put on stream 0 */
    cc__news news[CC_GROUPS_MAX];
    uint32_t n_news;
    bool told_connected, told_mended, told_lost, told_evidence; /* events to be taken out */
    bool in_pending;
    cc_evidence_kind lost_evidence, more_evidence;
    cc_status lost_status;
    cc__link *pending_next;
    cc__link *next; /* all links of the context */
};

typedef enum cc__link_event_kind {
    CC__LINK_CONNECTED = 1,
    CC__LINK_MENDED,   /* its connections were made anew; nothing on stream 0 was lost */
    CC__LINK_LOST,     /* it broke, or could not be made: evidence and status say how */
    CC__LINK_EVIDENCE, /* more is known of a lost or silent peer */
    CC__LINK_FRAME,    /* a frame without payload; an ABORT's is in the link's news. RESUMED: the
                          peer has said what it is missing */
    CC__LINK_WANT,     /* a frame's payload comes: call cc__links_place before the next event */
    CC__LINK_PAYLOAD,  /* the payload is at channel->place. RESUME: without a WANT before */
    CC__LINK_SENT,     /* `bytes` of the owner's `move` are sent, and the channel is free */
} cc__link_event_kind;

typedef struct cc__link_event {
    cc__link_event_kind kind;
    cc__link *link;
    cc__channel *channel;
    cc_evidence_kind evidence;
    cc_status status;
    void *owner;
    uint32_t move, bytes;
} cc__link_event;

typedef struct cc__links {
    cc_transport *transport;
    cc__clock clock;
    int64_t now_ns;   /* when the clock was read last, by cc__links_now */
    cc__trace *trace; /* the context's; NULL: nothing is recorded */
    cc_peer_id self;
    uint8_t token[16];
    uint32_t streams, segment_bytes;
    cc_timeouts timeouts;
    cc__detector detector;
    int64_t late_ns; /* when this peer last found itself late */
    uint64_t nonce;
    cc__link *first;
    uint32_t count;
    cc__channel *by_stream[256];             /* chained hash */
    cc__channel *resume_first, *resume_last; /* stopped for fairness, not for want of data */
    uint32_t n_resuming;
    cc__link *pending_first, *pending_last; /* with events to be taken out */
    cc__channel *current;
    int budget;
    cc__link_event sent; /* of the last fed event; kind 0: none */
    int64_t next_tick_ns;
} cc__links;

/* The time, noted for events that follow at once. */
static inline int64_t cc__links_now(cc__links *links) {
    return links->now_ns = cc__now(&links->clock);
}

/* Records an event that happens now. `peer` may be NULL. */
static inline void cc__links_trace(cc__links *links, cc_trace_event event, const cc_peer_id *peer) {
    if (links->trace == NULL) return;
    event.time_ns = cc__links_now(links);
    if (peer) memcpy(event.peer, peer->bytes, sizeof event.peer);
    cc__trace_add(links->trace, &event);
}

static inline void cc__link_trace(cc__links *links, const cc__link *link, cc_trace_kind kind,
                                  uint32_t code, uint64_t value) {
    cc_trace_event event = {.kind = (uint8_t)kind, .code = (uint8_t)code, .value = value};
    cc__links_trace(links, event, &link->id);
}

void cc__links_start(cc__links *links, cc_transport *transport, const cc_options *options);
/* Says BYE on every link that is up. */
void cc__links_goodbye(cc__links *links);
/* Whether nothing is queued any more. */
bool cc__links_drained(const cc__links *links);
/* Closes all links: orderly, or at once with `abort`. */
void cc__links_stop(cc__links *links, bool abort);

cc__link *cc__links_find(cc__links *links, const cc_peer_id *id);
/* Makes the link known and watched, and dials if this side is to. NULL: no memory, or too many. */
cc__link *cc__links_want(cc__links *links, const cc_member *member, uint32_t self_serial);
/* Closes a link whose peer is in no group any more. The handle is invalid afterwards. */
void cc__links_drop(cc__links *links, cc__link *link);

void cc__links_feed(cc__links *links, const cc_transport_event *event);
/* Goes on with a channel that stopped for fairness; false: there is none. */
bool cc__links_resume(cc__links *links);
bool cc__links_next(cc__links *links, cc__link_event *out);

/* After CC__LINK_WANT: where the payload goes and whose memory that is. NULL, NULL: nobody wants
 * it; it is read into scratch and no PAYLOAD event follows. */
void cc__links_place(cc__links *links, cc__channel *channel, void *place, void *owner);
/* What was lost with a connection cannot be asked for: gives the session up, as if it were lost. */
void cc__links_give_up(cc__links *links, cc__link *link);
/* A frame came that no peer may send: breaks the link. */
void cc__links_accuse(cc__links *links, cc__link *link);

/* Whether what is sent arrives, as long as the peer lives: the link is up, or being mended. */
static inline bool cc__link_lives(const cc__link *link) {
    return link->state == CC__LINK_UP || link->session.id != 0;
}

/* Sends a frame on stream 0; the payload is copied. A link that does not live loses it: what
 * matters is said again when it comes up. */
void cc__links_send(cc__links *links, cc__link *link, const cc__frame *frame, const void *payload);
/* Sends a segment on an idle bulk stream. CC_OK: sent. CC_PENDING: borrowed until the SENT event.
 * CC_BUSY: no stream is idle. */
cc_status cc__links_send_segment(cc__links *links, cc__link *link, const cc__frame *frame,
                                 const void *payload, void *owner, uint32_t move);
/* After MENDED, when the peer was told of all that is missing here. */
void cc__links_resumed(cc__links *links, cc__link *link);
/* Afterwards no stream touches the owner's memory, and no event names it. */
void cc__links_release(cc__links *links, const void *owner);

/* Sends heartbeats, notices silence. Returns when it wants to be called again. */
int64_t cc__links_tick(cc__links *links, int64_t now);

/* The slowest of the links that are up, as the transport knows them: zeros where it does not. */
cc_network cc__links_network(const cc__links *links);

/* What the peer said of a group; zeros if nothing. */
const cc__news *cc__link_news(const cc__link *link, uint32_t group);
void cc__link_forget(cc__link *link, uint32_t group);
/* Tells a peer that this one closed a group, and forgets what the peer said of it. */
void cc__links_decline(cc__links *links, cc__link *link, uint32_t group);

#endif
