#include "csrc/link/session.h"

#include "csrc/base/limits.h"
#include "csrc/wire/bytes.h"

#include <stdlib.h>
#include <string.h>

void cc__session_start(cc__session *session, uint64_t id) {
    *session = (cc__session){.id = id, .kept = session->kept, .capacity = session->capacity};
}

void cc__session_free(cc__session *session) {
    free(session->kept);
    *session = (cc__session){0};
}

/* Makes room behind what is kept. */
static bool reserve(cc__session *session, size_t bytes) {
    if (session->end - session->start + bytes > CC_CONTROL_QUEUE_BYTES) return false;
    if (session->start > 0 && session->end + bytes > session->capacity) {
        memmove(session->kept, session->kept + session->start, session->end - session->start);
        session->handed -= session->start;
        session->end -= session->start;
        session->start = 0;
    }
    if (session->end + bytes <= session->capacity) return true;
    size_t capacity = session->capacity ? session->capacity : 4096;
    while (capacity < session->end + bytes) capacity *= 2;
    uint8_t *kept = realloc(session->kept, capacity);
    if (kept == NULL) return false;
    session->kept = kept;
    session->capacity = capacity;
    return true;
}

bool cc__session_keep(cc__session *session, const struct iovec *iov, int count) {
    size_t bytes = 0;
    for (int i = 0; i < count; i++) bytes += iov[i].iov_len;
    if (!reserve(session, bytes)) return false;
    for (int i = 0; i < count; i++) {
        memcpy(session->kept + session->end, iov[i].iov_base, iov[i].iov_len);
        session->end += iov[i].iov_len;
    }
    return true;
}

size_t cc__session_next(const cc__session *session, size_t most) {
    size_t left = session->end - session->handed, bytes = 0;
    const uint8_t *frames = session->kept + session->handed;
    if (left <= most) return left;
    for (;;) { /* a peer that confirms half a frame gets nonsense, but no more than there is */
        uint64_t frame = CC_HEADER_BYTES + cc__get(frames + bytes + 12, 4);
        if (bytes + frame > most || bytes + frame + CC_HEADER_BYTES > left) break;
        bytes += frame;
    }
    return bytes ? bytes : most;
}

bool cc__session_confirm(cc__session *session, uint64_t received) {
    if (received < session->confirmed) return true; /* it is an old word */
    uint64_t more = received - session->confirmed;
    if (more > session->handed - session->start) return false;
    session->confirmed = received;
    session->start += (size_t)more;
    if (session->start == session->end) session->start = session->handed = session->end = 0;
    return true;
}

void cc__session_again(cc__session *session) {
    session->handed = session->start;
}
