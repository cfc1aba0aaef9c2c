/* Included by native.c once for each instruction set; VARIANT(name) is the name of a function in this variant. */

static void VARIANT(widen)(const void *in, int32_t type, float *out, size_t count) {
  size_t i = 0;
  if (type == FP32) {
    memcpy(out, in, count * 4);
  } else if (type == BF16) {
    const uint16_t *half = in;
    for (; i < count; i++) out[i] = float_of((uint32_t)half[i] << 16);
  } else {
    const uint16_t *half = in;
#ifdef HAS_F16C
    for (; i + 8 <= count; i += 8)
      _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(half + i))));
#endif
    for (; i < count; i++) out[i] = from_half(half[i]);
  }
}

static void VARIANT(narrow)(const float *in, void *out, int32_t type, size_t count) {
  size_t i = 0;
  if (type == FP32) {
    memcpy(out, in, count * 4);
  } else if (type == BF16) {
    uint16_t *half = out;
    for (; i < count; i++) half[i] = to_bfloat(in[i]);
  } else {
    uint16_t *half = out;
#ifdef HAS_F16C
    for (; i + 8 <= count; i += 8)
      _mm_storeu_si128((__m128i *)(half + i), _mm256_cvtps_ph(_mm256_loadu_ps(in + i), _MM_FROUND_TO_NEAREST_INT));
#endif
    for (; i < count; i++) half[i] = to_half(in[i]);
  }
}

static int64_t VARIANT(nonfinite_16)(const uint16_t *values, uint16_t mask, size_t count) {
  int64_t total = 0;
  for (size_t i = 0; i < count;) {
    size_t end = count - i < 16384 ? count : i + 16384;
    uint16_t found = 0; /* as narrow as the values, so that as many fit into a register */
    for (; i < end; i++) found += (values[i] & mask) == mask;
    total += found;
  }
  return total;
}

static int64_t VARIANT(nonfinite_32)(const uint32_t *values, size_t count) {
  int64_t total = 0;
  for (size_t i = 0; i < count;) {
    size_t end = count - i < 16384 ? count : i + 16384;
    uint32_t found = 0;
    for (; i < end; i++) found += (values[i] & 0x7f800000) == 0x7f800000;
    total += found;
  }
  return total;
}

static int64_t VARIANT(nonfinite)(const void *values, int32_t type, size_t count) {
  if (type == FP16) return VARIANT(nonfinite_16)(values, 0x7c00, count);
  if (type == BF16) return VARIANT(nonfinite_16)(values, 0x7f80, count);
  if (type == FP32) return VARIANT(nonfinite_32)(values, count);
  const uint64_t *wide = values, mask = (uint64_t)0x7ff << 52;
  int64_t total = 0;
  for (size_t i = 0; i < count; i++) total += (wide[i] & mask) == mask;
  return total;
}

/* Float32 sums of up to CHUNK / 32 squares each, added up in double. */
static double VARIANT(square)(const float *values, size_t count) {
  Lanes sums[4] = {{0}}, lanes;
  size_t i = 0;
  for (; i + 32 <= count; i += 32)
    for (int j = 0; j < 4; j++) {
      memcpy(&lanes, values + i + 8 * j, sizeof lanes);
      sums[j] += lanes * lanes;
    }
  double total = 0;
  for (int j = 0; j < 4; j++)
    for (int k = 0; k < 8; k++) total += sums[j][k];
  for (; i < count; i++) total += (double)values[i] * values[i];
  if (isfinite(total)) return total;
  /* Squares of float32 numbers beyond 1e19 overflow where the numbers themselves do not. */
  for (total = 0, i = 0; i < count; i++) total += (double)values[i] * values[i];
  return total;
}

static int64_t VARIANT(equal)(const void *left, const void *right, int32_t type, size_t count) {
  if (type == FP32) {
    const uint32_t *l = left, *r = right;
    uint32_t found = 0;
    for (size_t i = 0; i < count; i++) found += l[i] == r[i];
    return found;
  }
  const uint16_t *l = left, *r = right;
  uint16_t found = 0;
  for (size_t i = 0; i < count; i++) found += l[i] == r[i];
  return found;
}

static void VARIANT(fold_chunk)(const Tile *tile, Measured *measured, int64_t row, int64_t start, size_t count) {
  static const int32_t sizes[] = {2, 2, 4};
  const char *stored = tile->stored + row * tile->stored_row + start * sizes[tile->stored_type];
  const float *delta = (const float *)(tile->delta + row * tile->delta_row) + start;
  char *out = tile->out + row * tile->out_row + start * sizes[tile->out_type];
  float weight[CHUNK], merged[CHUNK], difference[CHUNK];
  VARIANT(widen)(stored, tile->stored_type, weight, count);
  for (size_t i = 0; i < count; i++) merged[i] = weight[i] + delta[i];
  if (tile->factor) {
    const char *factor = tile->factor + row * tile->factor_row + start * tile->factor_step;
    for (size_t i = 0; i < count; i++) {
      merged[i] *= *(const float *)(factor + (ptrdiff_t)i * tile->factor_step);
      difference[i] = merged[i] - weight[i];
    }
    delta = difference;
  }
  VARIANT(narrow)(merged, out, tile->out_type, count);
  if (!measured) return;
  measured->weight_square += VARIANT(square)(weight, count);
  measured->delta_square += VARIANT(square)(delta, count);
  measured->nonfinite_input += VARIANT(nonfinite_32)((const uint32_t *)weight, count);
  measured->nonfinite_output += VARIANT(nonfinite)(out, tile->out_type, count);
  if (tile->stored_type == tile->out_type) {
    measured->unchanged += VARIANT(equal)(stored, out, tile->out_type, count);
  } else {
    VARIANT(narrow)(weight, merged, tile->out_type, count); /* its numbers were written, its room is free */
    measured->unchanged += VARIANT(equal)(merged, out, tile->out_type, count);
  }
}

static void VARIANT(fold)(const Tile *tile, Measured *measured) {
  for (int64_t row = 0; row < tile->rows; row++)
    for (int64_t start = 0; start < tile->columns; start += CHUNK) {
      int64_t left = tile->columns - start;
      VARIANT(fold_chunk)(tile, measured, row, start, (size_t)(left < CHUNK ? left : CHUNK));
    }
}

static void VARIANT(cast)(const void *in, int32_t in_type, void *out, int32_t out_type, int64_t count) {
  static const int32_t sizes[] = {2, 2, 4};
  if (out_type == FP32) {
    VARIANT(widen)(in, in_type, out, (size_t)count);
    return;
  }
  float wide[CHUNK];
  for (int64_t start = 0; start < count; start += CHUNK) {
    size_t part = (size_t)(count - start < CHUNK ? count - start : CHUNK);
    VARIANT(widen)((const char *)in + start * sizes[in_type], in_type, wide, part);
    VARIANT(narrow)(wide, (char *)out + start * sizes[out_type], out_type, part);
  }
}
