package lifecycle

// VersionOf is the rule behind Version, which sees only its own binary.
var VersionOf = versionOf
