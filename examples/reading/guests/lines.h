/* What the recogniser saw in each crop -> lines of text (CTC, the best path). A line below the score
 *of 0.5 is dropped, as is one without a character.
 */
#ifndef TONA_LINES_H
#define TONA_LINES_H

#include <wasm_simd128.h>

#include "guest.h"

#define MIN_SCORE 0.5

/* The class of the largest value, the first of equals. */
static uint32_t best_class(const float *values, uint32_t count) {
    v128_t most = wasm_f32x4_splat(-__builtin_inff());
    uint32_t i = 0;
    for (; i + 4 <= count; i += 4) most = wasm_f32x4_pmax(most, wasm_v128_load(values + i));
    float best = wasm_f32x4_extract_lane(most, 0);
    for (int lane = 1; lane < 4; lane++) {
        float value = ((const float *)&most)[lane];
        if (value > best) best = value;
    }
    for (; i < count; i++)
        if (values[i] > best) best = values[i];
    for (i = 0; i < count; i++)
        if (values[i] == best) return i;
    return 0; /* every value is NaN: nothing was seen */
}

/* Where the table's entries start; entry k ends one byte before entry k+1 starts. */
static uint32_t split_table(const Port *table, uint32_t *starts, uint32_t room) {
    const uint8_t *bytes = tensor(table);
    uint32_t found = 0;
    starts[0] = 0;
    for (uint32_t i = 0; i < table->size_bytes; i++) {
        if (bytes[i] != '\n' && i + 1 != table->size_bytes) continue;
        found++;
        if (found <= room) starts[found] = bytes[i] == '\n' ? i + 1 : i + 2;
    }
    return found;
}

typedef struct {
    const uint8_t *table;
    const uint32_t *starts;
    uint32_t steps;
    uint32_t classes;
} Reader;

/* Appends the characters of one crop at `at`; returns where they end, the score beside. */
static uint8_t *read_line(const Reader *reader, const float *rows, uint8_t *at, double *score) {
    double sum = 0;
    uint32_t characters = 0, before = 0;
    for (uint32_t step = 0; step < reader->steps; step++) {
        const float *row = rows + (size_t)step * reader->classes;
        uint32_t class = best_class(row, reader->classes);
        if (class != 0 && class != before) {
            uint32_t start = reader->starts[class - 1];
            uint32_t length = reader->starts[class] - 1 - start;
            __builtin_memcpy(at, reader->table + start, length);
            at += length;
            sum += row[class];
            characters++;
        }
        before = class;
    }
    *score = characters ? sum / characters : 0;
    return at;
}

static int check(const Port *in, uint32_t n_in, uint32_t n_out) {
    if (n_in != 3 || n_out != 3 || !holds(&in[0], FLOAT32, 3) || !holds(&in[1], INT32, 1) ||
        in[1].dims[0] != 1 || !holds(&in[2], UINT8, 1))
        return fail(BAD_INPUT,
                    "text takes probabilities float32[-1,-1,-1], count int32[1], table uint8[-1] "
                    "and gives text, scores, index", 0, 0);
    int32_t count = *(const int32_t *)tensor(&in[1]);
    if (count < 0 || (uint32_t)count > in[0].dims[0])
        return fail(BAD_INPUT, "count is not between 0 and the # crops", in[0].dims[0], 0);
    if (in[0].dims[2] < 1) return fail(BAD_INPUT, "there are no classes", 0, 0);
    return OK;
}

/* From probabilities, count and table to text, scores and index. */
static inline int read_lines(const Port *in, uint32_t n_in, Port *out, uint32_t n_out) {
    int code = check(in, n_in, n_out);
    if (code) return code;
    uint32_t count = *(const uint32_t *)tensor(&in[1]);
    Reader reader = {tensor(&in[2]), 0, in[0].dims[1], in[0].dims[2]};
    uint32_t entries = reader.classes - 1;
    uint32_t *starts = take((uint64_t)(entries + 1) * sizeof(uint32_t));
    if (!starts) return fail_memory();
    uint32_t found = split_table(&in[2], starts, entries);
    if (found != entries)
        return fail(BAD_INPUT, "the table has # entries, the classes ask for #", found, entries);
    reader.starts = starts;
    uint32_t longest = 0;
    for (uint32_t i = 0; i < entries; i++) {
        uint32_t length = starts[i + 1] - 1 - starts[i];
        if (length > longest) longest = length;
    }
    uint8_t *text = take(((uint64_t)reader.steps * longest + 1) * count);
    float *scores = take((uint64_t)count * sizeof(float));
    int32_t *index = take((uint64_t)count * sizeof(int32_t));
    if (!text || !scores || !index) return fail_memory();
    const float *rows = tensor(&in[0]);
    uint8_t *at = text;
    uint32_t lines = 0;
    for (uint32_t crop = 0; crop < count; crop++) {
        uint8_t *start = lines ? at + 1 : at;
        double score;
        uint8_t *end = read_line(&reader, rows + (size_t)crop * reader.steps * reader.classes,
                                 start, &score);
        if (end == start || score < MIN_SCORE) continue;
        if (lines) *at = '\n';
        at = end;
        scores[lines] = (float)score;
        index[lines++] = (int32_t)crop;
    }
    out[0].dims[0] = (uint32_t)(at - text);
    give(&out[0], text, UINT8, 1);
    out[1].dims[0] = lines;
    give(&out[1], scores, FLOAT32, 1);
    out[2].dims[0] = lines;
    give(&out[2], index, INT32, 1);
    return OK;
}

#endif
