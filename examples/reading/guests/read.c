/* read: crops -> lines of text, with the recogniser run from here (`infers = ["recognise"]`).
 *
 *   in   crops   float32[-1,3,48,-1]  as `crop` gives them
 *        count   int32[1]             how many of the crops hold a box; the rest is padding
 *        table   uint8[-1]            as of `text`
 *   out  text    uint8[-1]            as of `text`
 *        scores  float32[-1]
 *        index   int32[-1]
 */
#include "infer.h"
#include "lines.h"

EXPORT("tona_run") int tona_run(const Port *in, uint32_t n_in, Port *out, uint32_t n_out) {
    if (n_in != 3) return fail(BAD_INPUT, "read takes crops, count and table", 0, 0);
    Port seen[3] = {{0}, in[1], in[2]};
    int32_t code = INFER("recognise", &in[0], 1, &seen[0], 1);
    if (code != INFER_DONE)
        return fail(BAD_INPUT, "recognise did not run: infer gave -#", (uint32_t)-code, 0);
    return read_lines(seen, 3, out, n_out);
}
