// SPDX-License-Identifier: Apache-2.0

package seal

import (
	"bytes"
	stdjson "encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// maxDepth bounds the nesting of a sealed object.
const maxDepth = 32

// Decode decodes exactly one JSON object, in one pass. It refuses fields that are
// unknown (also if they differ from a known one in case only) or occur twice, wherever they
// are, and text that is not Unicode. Only what is free can be nested deeply: see CheckFree.
func Decode(data []byte, v any) error {
	if err := json.Unmarshal(data, v, json.RejectUnknownMembers(true)); err != nil {
		return fmt.Errorf("its JSON is not valid: %w", plainError(err))
	}
	return nil
}

// plainError says what is wrong in words that are about the JSON, and not about Go.
func plainError(err error) error {
	var syntax *jsontext.SyntacticError
	var meaning *json.SemanticError
	switch {
	case errors.As(err, &syntax) && errors.Is(err, jsontext.ErrDuplicateName):
		return fmt.Errorf("field %.80q occurs twice", syntax.JSONPointer.LastToken())
	case errors.As(err, &syntax):
		return fmt.Errorf("at byte %d: %w", syntax.ByteOffset, syntax.Err)
	case errors.As(err, &meaning) && errors.Is(err, json.ErrUnknownName):
		return fmt.Errorf("unknown field %.80q", meaning.JSONPointer.LastToken())
	case errors.As(err, &meaning) && meaning.Err != nil:
		return fmt.Errorf("%.200q: %w", string(meaning.JSONPointer), meaning.Err)
	case errors.As(err, &meaning):
		return fmt.Errorf("%.200q is a %s, which does not belong there", string(meaning.JSONPointer), meaning.JSONKind)
	}
	return err
}

// CheckFree returns an error for what is no object, or nested more deeply than a field of
// a sealed object may be.
func CheckFree(info stdjson.RawMessage) error {
	if len(info) == 0 {
		return nil
	}
	d := jsontext.NewDecoder(bytes.NewReader(info))
	if d.PeekKind() != jsontext.KindBeginObject {
		return errors.New("it is not a JSON object")
	}
	for {
		if _, err := d.ReadToken(); err != nil {
			return plainError(err)
		}
		switch {
		case d.StackDepth() >= maxDepth:
			return fmt.Errorf("more than %d levels", maxDepth)
		case d.StackDepth() == 0:
			return checkEnd(d)
		}
	}
}

// checkEnd returns an error if there is more than one value.
func checkEnd(d *jsontext.Decoder) error {
	if _, err := d.ReadToken(); err != io.EOF {
		return errors.New("there is more than one value")
	}
	return nil
}
