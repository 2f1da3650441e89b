// Package archtest holds the tests that keep the layout of the design: which package may import which, what a pure
// package may not do, that each package says what it is for, that main functions stay small. It has no code of its own
// and nobody may import it.
//
// A new folder under internal/ counts as an adapter (layer 3) until layerOf in rules_test.go says otherwise; a new pure
// package is added to purePackages there.
package archtest
