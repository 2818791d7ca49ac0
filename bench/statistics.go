package main

import (
	"math"
	"slices"
)

// spread is what the rounds have shown of one number.
type spread struct {
	n                int
	median, min, max float64
}

// summarize takes the values of the rounds; the median of an even number of them is the mean of the two in the middle.
func summarize(values []float64) spread {
	if len(values) == 0 {
		return spread{median: math.NaN(), min: math.NaN(), max: math.NaN()}
	}
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	return spread{n: n, median: (sorted[(n-1)/2] + sorted[n/2]) / 2, min: sorted[0], max: sorted[n-1]}
}

// percentile is the nearest-rank percentile (0 < p <= 100) of sorted values.
func percentile(sorted []int64, p float64) int64 {
	rank := int(math.Ceil(p / 100 * float64(len(sorted))))
	return sorted[max(rank, 1)-1]
}

// ratios divides round by round, since two runs of one round have had the most equal machine. A round that lacks one of
// the two counts for nothing.
func ratios(values, reference map[int]float64) []float64 {
	var found []float64
	for round, value := range values {
		if base, ok := reference[round]; ok && base != 0 {
			found = append(found, value/base)
		}
	}
	return found
}
