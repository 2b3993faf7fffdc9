/* text: what the recogniser saw in each crop -> lines of text (CTC, the best path).
 *
 *   in   probabilities  float32[-1,-1,-1]  crop, time step, class: blank, then the table's entries
 *        count          int32[1]           how many of the crops hold a box; the rest is padding
 *        table          uint8[-1]          UTF-8, one entry a line, in the order of the classes
 *   out  text           uint8[-1]          UTF-8, one line a box, '\n' between them
 *        scores         float32[-1]        of each line: mean probability of its characters
 *        index          int32[-1]          of each line: which crop it was read from
 */
#include "lines.h"

EXPORT("tona_run") int tona_run(const Port *in, uint32_t n_in, Port *out, uint32_t n_out) {
    return read_lines(in, n_in, out, n_out);
}
