/* Large blocks of memory that operations use for a moment: a copy of an input, partial sums. Fresh
 * ones would be zeroed by the system page by page, which takes longer than to fill them, so a few
 * are kept for the next operation of about that length. One pool for the process.
 *
 * Any thread may call these, and a signal or fork in between does no harm: there is no lock. */
#ifndef CC_BASE_POOL_H
#define CC_BASE_POOL_H

#include <stddef.h>
#include <stdint.h>

/* Memory of any content, aligned to 64 bytes; NULL: there is none. */
void *cc__pool_take(size_t bytes);
/* Gives it back; NULL is fine. */
void cc__pool_give(void *memory);
/* Frees what was given back before `then` and not taken since. `now` is what "given back" means for
 * blocks from now on: any clock that rises, the same for all calls. */
void cc__pool_trim(int64_t now, int64_t then);

#endif
