/* What outlives a connection: a session numbers the bytes of all frames on stream 0, in both
 * directions, from the first connection of a link on. A sender keeps what its peer has not
 * confirmed; when the connection was made anew, both say what they have, and the rest is sent
 * again. So control frames arrive once and in order, whatever became of connections.
 *
 * Data on bulk streams is not kept: its receiver says what is missing (csrc/group/mend.c). */
#ifndef CC_LINK_SESSION_H
#define CC_LINK_SESSION_H

#include "csrc/wire/wire.h"

#include <stdbool.h>
#include <stddef.h>
#include <sys/uio.h>

typedef struct cc__session {
    uint64_t id;        /* the number of the dial that began it; 0: there is none */
    uint64_t received;  /* bytes of their frames that are here */
    uint64_t told;      /* of these, the peer knows */
    uint64_t confirmed; /* bytes of our frames that the peer has */
    uint8_t *kept;      /* the frames behind these: */
    size_t start, handed, end, capacity; /* not confirmed; not yet given to the stream */
} cc__session;

/* Begins anew, with nothing sent and nothing received. 0: there is none any more. */
void cc__session_start(cc__session *session, uint64_t id);
void cc__session_free(cc__session *session);
/* Keeps a frame, to be sent. False: too much is kept already, or no memory. */
bool cc__session_keep(cc__session *session, const struct iovec *iov, int count);
/* Bytes of whole frames, at most `most`, that the stream is to be given next: between frames there is
 * room for a heartbeat. `most` is at least that of the longest frame. */
size_t cc__session_next(const cc__session *session, size_t most);
/* The peer has so many bytes. False: it cannot. */
bool cc__session_confirm(cc__session *session, uint64_t received);
/* The connection is a new one: what is not confirmed goes out again. */
void cc__session_again(cc__session *session);

/* Whether a frame is counted: those that are of one connection alone are not. */
static inline bool cc__session_counts(uint8_t type) {
    return type != CC__BEAT && type != CC__SESSION;
}

#endif
