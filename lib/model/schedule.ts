// How often something is due, and whether it is now. Pure: the caller brings the clock.

/** As the configuration says it. */
export type Frequency =
  | 'hourly'
  | 'daily'
  | 'weekly'
  | 'monthly'
  | 'always'
  | 'manual'
  | 'never'
