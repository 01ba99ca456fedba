package signin

// ReturnTo is returnTo, for fuzzing.
var ReturnTo = returnTo
