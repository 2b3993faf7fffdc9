/* Several steps as one module: each step's source is included with its `tona_run` under another name.
 *
 *   #define tona_run decode_run
 *   #include "../../reading/guests/decode.c"
 *   #undef tona_run
 */
#ifndef TONA_WHOLE_H
#define TONA_WHOLE_H

#include "../../reading/guests/image.h"
#include "../../reading/guests/infer.h"

/* What the host may call is this module's own. */
#undef EXPORT
#define EXPORT(name) static
#define EXPORT_WHOLE(name) __attribute__((export_name(name), used))

#endif
